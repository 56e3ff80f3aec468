"""Pauses of trials by a search that continues the best of them."""

import logging
from typing import Annotated

import lightning as L
from lightning.pytorch.callbacks import Callback

from project.runtime.bounds import Range
from project.runtime.text import plural

log = logging.getLogger(__name__)


class TrialPause(Callback):
    """Pauses a training after a number of epochs; a resumed run continues it exactly.

    Schedules follow `trainer.max_epochs`, as in a training without a pause. The callback has no state in
    checkpoints, so these do not differ either. A run that is resumed without a later pause does not train.

    Args:
        epochs: epochs after which the run pauses, including those before it was resumed.
    """

    def __init__(self, epochs: Annotated[int, Range(1)]) -> None:
        self.epochs = epochs
        self.paused = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._pause_after(trainer.current_epoch, trainer):
            log.info(
                "run already paused after %s; to continue training, set callbacks.pause.epochs above that",
                plural(trainer.current_epoch, "epoch"),
            )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._pause_after(trainer.current_epoch + 1, trainer)

    def _pause_after(self, epochs: int, trainer: L.Trainer) -> bool:
        """Stop the training if a pause is due and epochs are left; return true if so."""
        if epochs < self.epochs or epochs == trainer.max_epochs:
            return False
        self.paused = trainer.should_stop = True
        return True
