"""Checkpoints of a run: the best weights, and the last state, from which a run is resumed."""

import time
from pathlib import Path
from typing import Annotated, Any

import lightning as L
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import ModelCheckpoint

from project.runs.checkpoints import LAST
from project.runtime import signals
from project.runtime.bounds import Range
from project.runtime.torchrun import all_reduce_max


class Checkpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, for run folders that may have been moved since a checkpoint was written.

    Lightning's own forgets the best score of a moved folder, and replaces the best weights by worse ones.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        moved = {}
        for key in ("best_model_path", "last_model_path", "kth_best_model_path"):
            moved[key] = self._move_here(state_dict[key])
        best_k_models = {self._move_here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(
            state_dict | moved | {"best_k_models": best_k_models, "dirpath": str(self.dirpath)}
        )
        self.current_score = state_dict.get("current_score")

    def _move_here(self, path: str) -> str:
        return str(Path(self.dirpath or "", Path(path).name)) if path else ""


class LastCheckpoint(callbacks.Checkpoint):
    """Saves the last state of a training by epochs, steps or minutes, and at its end.

    The state before it stays as `previous.ckpt`, in case that the disk damages the last one. A training that
    is stopped by a signal saves after its present step, whatever these intervals.

    Args:
        dirpath: folder of the checkpoints.
        every_epochs: epochs between saves; 0: not by epochs.
        every_steps: optimizer steps between saves; 0: not by steps.
        every_minutes: minutes between saves, within an epoch too; 0: not by time.
    """

    def __init__(
        self,
        dirpath: str,
        every_epochs: Annotated[int, Range(0)] = 1,
        every_steps: Annotated[int, Range(0)] = 0,
        every_minutes: Annotated[float, Range(0)] = 0,
    ) -> None:
        self.path = Path(dirpath) / LAST
        self.every_epochs = every_epochs
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self._saved_step = -1
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step = trainer.global_step  # there is nothing to save before the next step
        self._saved_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Return True if it is time to save, by the clock of this process."""
        return self.every_minutes > 0 and time.monotonic() - self._saved_at >= 60 * self.every_minutes

    def due_at(self, step: int) -> bool:
        """Return True if a save is due after this many optimizer steps."""
        return bool(self.every_steps) and step % self.every_steps == 0 and step != self._saved_step

    def save(self, trainer: L.Trainer) -> None:
        """Save, unless no step was taken since the last save; all ranks must call this at the same step."""
        if trainer.global_step == self._saved_step:
            return
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signum, due = all_reduce_max(trainer, signals.requested(), self.due)
        epoch_due = self.every_epochs > 0 and (trainer.current_epoch + 1) % self.every_epochs == 0
        if signum or due or epoch_due or self.due_at(trainer.global_step):
            self.save(trainer)
        if signum:
            raise signals.Stopped(signum)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        (is_missing,) = all_reduce_max(trainer, int(not self.path.exists()))
        if is_missing:
            self._saved_step = -1
        self.save(trainer)
