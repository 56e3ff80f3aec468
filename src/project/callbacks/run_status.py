"""What a run's folder says of it while it goes on."""

import time

import lightning as L
from lightning.pytorch.callbacks import Callback

from project.runs.run_folder import RunFolder

INTERVAL_S = 0.5


class Record(Callback):
    """Keeps `progress` in the status file: epoch, epochs and the latest metrics.

    Args:
        run: its folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._written = -INTERVAL_S

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hold what the folder is made whole from if it is removed."""
        if trainer.is_global_zero:
            self.run.keep_config()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write, unless it was done a moment ago."""
        now = time.monotonic()
        if trainer.is_global_zero and now - self._written >= INTERVAL_S:
            self._written = now
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            epochs = trainer.max_epochs or 0
            self.run.write_status(
                progress={"epoch": trainer.current_epoch + 1, "epochs": max(epochs, 0), **metrics}
            )
