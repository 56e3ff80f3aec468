"""Lightning callbacks that time training from within a run."""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

CONFIG_TARGETS = ("Stopwatch",)
"""Classes that configurations may name (see project.config.allowed_targets)."""


class Reading(NamedTuple):
    """A reading of both clocks, or the difference of two readings."""

    wall_s: float
    cpu_s: float  # processor time of this process, all threads

    def since(self, earlier: "Reading") -> "Reading":
        """Return the time since an earlier reading."""
        return Reading(self.wall_s - earlier.wall_s, self.cpu_s - earlier.cpu_s)


def read_clocks(device: torch.device) -> Reading:
    """Read the clocks after all work on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Reading(time.perf_counter(), time.process_time())


class Stopwatch(Callback):
    """Times each training epoch until the next one begins, including checkpoints and logging.

    Args:
        file: JSON file for the measurements: `epochs`, a list of [wall, CPU] seconds, and `steps`, the number
            of optimizer steps.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.measured: dict[str, Any] = {"epochs": []}
        self._began: Reading | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop timing the previous epoch and start timing this one."""
        self._stop(pl_module.device)
        self.between(trainer, pl_module)
        self._began = read_clocks(pl_module.device)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop timing the last epoch and write the file."""
        self._stop(pl_module.device)
        self.between(trainer, pl_module)
        self.measured["steps"] = trainer.global_step
        self.file.write_text(json.dumps(self.measured))

    def between(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run before the first epoch and after each epoch, outside the timing."""

    def _stop(self, device: torch.device) -> None:
        if self._began is not None:
            self.measured["epochs"].append(read_clocks(device).since(self._began))
            self._began = None
