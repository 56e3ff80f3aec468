"""Training progress in the status file of a run."""

import time

import lightning as L
from lightning.pytorch.callbacks import Callback

from project.runs.run_folder import RunFolder
from project.runtime.devices import device_name

MIN_INTERVAL_S = 0.5


class RunStatus(Callback):
    """Writes the epoch, the number of epochs and the metrics to `progress` in the status file.

    The hardware is written to `device` when training starts.

    Args:
        run: run folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._written = -MIN_INTERVAL_S

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.run.keep_config()
            kind = trainer.strategy.root_device.type
            self.run.write_status(device=device_name(kind, trainer.world_size))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        now = time.monotonic()
        is_due = trainer.should_stop or now - self._written >= MIN_INTERVAL_S
        if trainer.is_global_zero and is_due:
            self._written = now
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            epochs = max(trainer.max_epochs or 0, 0)
            self.run.write_status(progress={"epoch": trainer.current_epoch + 1, "epochs": epochs, **metrics})
