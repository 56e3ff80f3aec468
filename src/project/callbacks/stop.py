"""Stopping in a long validation."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from project import stopping


class Stop(Callback):
    """End a validation during training that does not come to its end soon after the run was told to stop.

    Nothing is saved then: the state is that of the last checkpoint and of nothing later.
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
        """Give up when the time is over."""
        if stopping.requested_for() > stopping.VALIDATION_LIMIT_S:
            raise stopping.Stopped(stopping.requested())
