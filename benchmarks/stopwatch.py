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
    """A moment, or the time between two."""

    wall_s: float
    cpu_s: float  # processor time of this process, all threads

    def since(self, earlier: "Reading") -> "Reading":
        """The time between two moments."""
        return Reading(self.wall_s - earlier.wall_s, self.cpu_s - earlier.cpu_s)


def read_clocks(device: torch.device) -> Reading:
    """The present moment, with nothing left to compute on `device`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Reading(time.perf_counter(), time.process_time())


class Stopwatch(Callback):
    """Times every training epoch, with all that follows it until the next one begins: checkpoints, records.

    Args:
        file: gets the measurements as JSON when training has ended: `epochs`, a list of [wall, CPU] seconds,
            and `steps`, optimizer steps taken.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.measured: dict[str, Any] = {"epochs": []}
        self._began: Reading | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the epoch before and begin this one."""
        self._stop(pl_module.device)
        self.between(trainer, pl_module)
        self._began = read_clocks(pl_module.device)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the last epoch and write the file."""
        self._stop(pl_module.device)
        self.between(trainer, pl_module)
        self.measured["steps"] = trainer.global_step
        self.file.write_text(json.dumps(self.measured))

    def between(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Whatever else is to be done before the first epoch and after each; it is not counted."""

    def _stop(self, device: torch.device) -> None:
        if self._began is not None:
            self.measured["epochs"].append(read_clocks(device).since(self._began))
            self._began = None
