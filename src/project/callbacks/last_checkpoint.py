"""The state from which a run goes on."""

import time
from pathlib import Path
from typing import Annotated

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from project.errors import InputError
from project.runs.checkpoints import LAST
from project.runtime import signals
from project.runtime.bounds import Range
from project.runtime.torchrun import all_reduce_max


class Last(Checkpoint):
    """Keep the last state of a training: by epochs, steps or minutes, and at its end.

    The state before it stays as `previous.ckpt`, for the case that the disk damages the last one. A training
    that is told to stop saves after the step that it is at, whatever these intervals.

    Args:
        dirpath: folder of the checkpoints.
        every_epochs: epochs from save to save; 0: not by epochs.
        every_steps: optimizer steps from save to save; 0: not by steps.
        every_minutes: minutes from save to save, within an epoch too; 0: not by time.

    Raises:
        InputError: an interval is below 0.
    """

    def __init__(
        self,
        dirpath: str,
        every_epochs: Annotated[int, Range(0)] = 1,
        every_steps: Annotated[int, Range(0)] = 0,
        every_minutes: Annotated[float, Range(0)] = 0,
    ) -> None:
        intervals = {"every_epochs": every_epochs, "every_steps": every_steps, "every_minutes": every_minutes}
        for name, value in intervals.items():
            if value < 0:
                raise InputError(f"callbacks.last.{name}={value}: must be at least 0, which means never")
        self.path = Path(dirpath) / LAST
        self.every_epochs = every_epochs
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self._saved_step = -1
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the first interval."""
        self._saved_step = trainer.global_step  # a state that was just restored, or that nothing was done for
        self._saved_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to save, by the clock of this process."""
        return self.every_minutes > 0 and time.monotonic() - self._saved_at >= 60 * self.every_minutes

    def due_at(self, step: int) -> bool:
        """Whether to save after this many optimizer steps."""
        return bool(self.every_steps) and step % self.every_steps == 0 and step != self._saved_step

    def save(self, trainer: L.Trainer) -> None:
        """Save, unless nothing was trained since the last time; on all ranks after the same step."""
        if trainer.global_step == self._saved_step:
            return
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end of an epoch; stop there if the run was told to."""
        signum, due = all_reduce_max(trainer, signals.requested(), self.due)
        epoch_due = self.every_epochs > 0 and (trainer.current_epoch + 1) % self.every_epochs == 0
        if signum or due or epoch_due or self.due_at(trainer.global_step):
            self.save(trainer)
        if signum:
            raise signals.Stopped(signum)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end of the training, again if the file was removed."""
        (gone,) = all_reduce_max(trainer, int(not self.path.exists()))
        if gone:
            self._saved_step = -1
        self.save(trainer)
