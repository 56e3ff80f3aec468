"""Stopping in a validation."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from project.runtime import signals
from project.runtime.all_reduce import largest
from project.training.epoch_loop import EpochLoop

EVERY = 16
"""Validation batches from one agreement of several ranks to the next: each waits for all devices."""


class Stop(Callback):
    """Leave a validation during training when the run was told to stop; a resumed run begins it again.

    The state is saved, that of the last batch. Within gradients that accumulate it cannot be: there the
    validation ends first, and the optimizer step. All ranks have the same number of batches here.
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
        """Save and leave, but not at the end, behind which the training loop does."""
        loop = trainer.fit_loop.epoch_loop
        if trainer.state.fn != "fit" or not isinstance(loop, EpochLoop):
            return
        if trainer.world_size > 1 and (batch_idx + 1) % EVERY:
            return
        (signum,) = largest(trainer, signals.requested())
        if signum and not loop.val_loop.batch_progress.is_last_batch and not loop._should_accumulate():
            loop.save()
            raise signals.Stopped(signum)
