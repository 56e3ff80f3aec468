"""Lightning's Trainer with batched hooks, atomic checkpoints and graceful stops."""

from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from lightning.fabric.plugins.io import CheckpointIO

from project.modules.nan_guard import require_finite
from project.runtime import lightning_private, signals
from project.runtime.bounds import Range
from project.training.checkpoint_io import SafeCheckpointIO
from project.training.epoch_loop import EpochLoop
from project.training.exact_resume import FitLoop


class Trainer(lightning_private.TrainerBase):
    """`lightning.Trainer` that calls hooks once per group of batches.

    Args:
        batches_per_hook: batches per group; None: as many as take about 0.2 s; 1: call hooks for every batch
            (see `EpochLoop`) [None].
        timeout_min: time that a rank waits for other ranks before it raises an error, min [10].
        plugins: plugins of `lightning.Trainer`; a checkpoint plugin replaces `SafeCheckpointIO`.
        options: other arguments of `lightning.Trainer`.
    """

    def __init__(
        self,
        *,
        batches_per_hook: Annotated[int, Range(1)] | None = None,
        timeout_min: Annotated[float, Range(above=0)] = 10,
        plugins: Any = None,
        **options: Any,
    ) -> None:
        given = plugins if isinstance(plugins, list) else [plugins] if plugins is not None else []
        if not any(isinstance(plugin, CheckpointIO) for plugin in given):
            given = [*given, SafeCheckpointIO()]
        super().__init__(plugins=given, **options)
        # Lightning's handlers save nothing, or wait for other ranks: `project.runtime.signals` has its own.
        lightning_private.disable_signal_handlers(self)
        lightning_private.set_timeout(self, timedelta(minutes=timeout_min))
        epochs, limits = self.fit_loop, self.fit_loop.epoch_loop
        self.fit_loop = FitLoop(self, min_epochs=epochs.min_epochs, max_epochs=epochs.max_epochs)
        self.fit_loop.epoch_loop = EpochLoop(
            self, batches_per_hook, min_steps=limits.min_steps, max_steps=limits.max_steps
        )

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any = None
    ) -> None:
        """Save a checkpoint if all weights are finite; all ranks must call this method.

        Raises:
            NonFiniteError: a weight or optimizer state is NaN or infinite.
            CheckpointError: the file cannot be written.
        """
        require_finite(self.lightning_module, self.optimizers, self.global_step)
        super().save_checkpoint(filepath, weights_only, storage_options)

    def stage_context(self) -> AbstractContextManager[object]:
        """Return a context that defers stop signals to the epoch loop during training."""
        return signals.defer_signals() if self.training else nullcontext()
