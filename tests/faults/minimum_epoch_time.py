"""Callback that sets a least duration of epochs, so that fast machines behave like slow ones."""

import time

import lightning as L
from lightning.pytorch.callbacks import Callback

CONFIG_TARGETS = ("Pace",)
"""Classes that configurations may name (see `project.config.allowed_targets`)."""


class Pace(Callback):
    """Pause at the end of each epoch.

    Args:
        seconds: duration of the pause [s].
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        time.sleep(self.seconds)
