"""A callback that gives a run's epochs the same least duration on fast machines as on slow ones."""

import time

import lightning as L
from lightning.pytorch.callbacks import Callback

CONFIG_TARGETS = ("Pace",)
"""What configurations may name (see project.config.allowed_targets)."""


class Pace(Callback):
    """Waits at the end of each epoch.

    Args:
        seconds: to wait.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        time.sleep(self.seconds)
