"""Callback that stops a run during validation."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from project.runtime import signals
from project.runtime.torchrun import all_reduce_max
from project.training.epoch_loop import EpochLoop

CHECK_EVERY = 16
"""Validation batches between two checks on several ranks. Each check waits for all devices."""


class StopDuringValidation(Callback):
    """Saves the state and stops during validation on a stop signal. A resumed run repeats the validation.

    While gradients accumulate, the state cannot be saved. The validation and the optimizer step are finished
    first. All ranks must have the same number of validation batches.
    """

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        loop = trainer.fit_loop.epoch_loop
        if trainer.state.fn != "fit" or not isinstance(loop, EpochLoop):
            return
        if trainer.world_size > 1 and (batch_idx + 1) % CHECK_EVERY:
            return
        (signum,) = all_reduce_max(trainer, signals.requested())
        if signum and not loop.val_loop.batch_progress.is_last_batch and not loop._should_accumulate():
            loop.save()
            raise signals.Stopped(signum)
