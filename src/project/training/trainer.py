"""Lightning's Trainer, with our loop over an epoch."""

from typing import Any

import lightning as L

from project.training.loop import EpochLoop


class Trainer(L.Trainer):
    """`lightning.Trainer` that trains many batches between two visits to Lightning's hooks.

    Args:
        chunk: how many; null chooses, 1 visits the hooks with every batch (see `EpochLoop`).
        options: of `lightning.Trainer`.
    """

    def __init__(self, *, chunk: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        limits = self.fit_loop.epoch_loop
        self.fit_loop.epoch_loop = EpochLoop(
            self, chunk, min_steps=limits.min_steps, max_steps=limits.max_steps
        )
