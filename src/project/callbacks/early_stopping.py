"""Early stopping."""

import logging
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

log = logging.getLogger(__name__)


class EarlyStopping(LightningEarlyStopping):
    """Lightning's callback, but a resumed run's patience is that of its configuration, and one that had been
    stopped does not train on unless that is longer now. A training that ends before its first validation,
    because of `max_steps` or `max_time`, has nothing to check and is no mistake.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the metric, unless the training has ended within an epoch that was not validated."""
        if (
            self.monitor in trainer.callback_metrics
            or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        ):
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and the checks since it."""
        super().load_state_dict(state_dict | {"patience": self.patience})
        if self.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED and self.wait_count < self.patience:
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
            self.stopping_reason_message = None
            self.stopped_epoch = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop a run again that had been stopped when its checkpoint was written."""
        if self.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            log.info(
                "stopped early already: %s; to train on, set callbacks.early_stopping.patience above %s",
                self.stopping_reason_message or self.stopping_reason.value,
                self.wait_count,
            )
            trainer.should_stop = True
