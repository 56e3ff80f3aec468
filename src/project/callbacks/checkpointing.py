"""Checkpoint callbacks: the best weights, and the last training state for resuming."""

import time
from pathlib import Path
from typing import Annotated, Any

import lightning as L
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import ModelCheckpoint

from project.runs.checkpoint_files import LAST
from project.runtime import signals
from project.runtime.bounds import Range
from project.runtime.torchrun import all_reduce_max


class BestCheckpoint(ModelCheckpoint):
    """Saves the best weights, also in a run folder that was moved.

    Lightning's `ModelCheckpoint` discards the best score if the folder was moved, and then overwrites the
    best weights with worse ones.
    """

    @property
    def state_key(self) -> str:
        # Checkpoints of earlier versions hold the state under the class's former name.
        return super().state_key.removeprefix("Best")

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
    """Saves the last training state at intervals of epochs, steps or minutes, and at the end.

    The checkpoint saved before stays as `previous.ckpt`, in case the last one is damaged. After a stop
    signal, the state is saved at the end of the current step, regardless of the intervals.

    Args:
        dirpath: folder of the checkpoints.
        every_epochs: epochs between saves [1]; 0: do not save by epochs.
        every_steps: optimizer steps between saves [0]; 0: do not save by steps.
        every_minutes: minutes between saves, also within an epoch [0]; 0: do not save by time.
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
        self._saved_step = trainer.global_step  # the checkpoint on disk is up to date until the next step
        self._saved_at = time.monotonic()

    @property
    def saved_step(self) -> int:
        """Optimizer step of the last checkpoint, which may not be written to the disk yet."""
        return self._saved_step

    @property
    def due(self) -> bool:
        """Return True if `every_minutes` have passed on this rank's clock since the last save."""
        return self.every_minutes > 0 and time.monotonic() - self._saved_at >= 60 * self.every_minutes

    def due_at(self, step: int) -> bool:
        """Return True if `every_steps` requires a save after optimizer step `step`."""
        return bool(self.every_steps) and step % self.every_steps == 0 and step != self._saved_step

    def save(self, trainer: L.Trainer) -> None:
        """Save the state if a step was taken since the last save; all ranks must call at the same step."""
        if trainer.global_step == self._saved_step:
            return
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signum, due = all_reduce_max(trainer, signals.requested(), self.due or trainer.should_stop)
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
