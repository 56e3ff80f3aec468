"""Early stopping that supports resumed runs."""

import logging
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

log = logging.getLogger(__name__)


class EarlyStopping(LightningEarlyStopping):
    """Lightning's `EarlyStopping` with support for resumed runs.

    A resumed run uses the patience of its current configuration. A run that was stopped early continues only
    if the patience was raised. Training that ends before its first validation, because of `max_steps` or
    `max_time`, raises no error.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (
            self.monitor in trainer.callback_metrics
            or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        ):
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})
        if self.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED and self.wait_count < self.patience:
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
            self.stopping_reason_message = None
            self.stopped_epoch = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            log.info(
                "run already stopped early: %s; to continue training, set "
                "callbacks.early_stopping.patience above %s",
                self.stopping_reason_message or self.stopping_reason.value,
                self.wait_count,
            )
            trainer.should_stop = True
