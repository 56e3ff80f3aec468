"""Pauses of trials by a search that continues the best of them."""

import logging
from typing import Annotated

import lightning as L
from lightning.pytorch.callbacks import Callback

from project.runtime.bounds import Range

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
        if trainer.current_epoch >= self.epochs:
            log.info(
                "run already paused after %s epochs; to continue training, set callbacks.pause.epochs above",
                self.epochs,
            )
            self._pause(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch + 1 >= self.epochs:
            self._pause(trainer)

    def _pause(self, trainer: L.Trainer) -> None:
        self.paused = trainer.should_stop = True
