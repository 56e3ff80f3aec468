"""Lightning's Trainer with grouped batches, atomic checkpoints and graceful stops."""

from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import lightning as L
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from project.modules.nan_guard import require_finite
from project.runtime import signals
from project.runtime.bounds import Range
from project.training.checkpoint_io import SafeCheckpointIO
from project.training.epoch_loop import EpochLoop
from project.training.exact_resume import FitLoop


class Trainer(L.Trainer):
    """`lightning.Trainer` that calls hooks once per group of batches.

    Args:
        batches_per_hook: batches per group; null chooses about 0.2 s, 1 calls the hooks for every batch
            (see `EpochLoop`).
        timeout_min: minutes that a rank waits for the others before it raises an error.
        plugins: plugins of `lightning.Trainer`. A checkpoint plugin replaces `SafeCheckpointIO`.
        options: further arguments of `lightning.Trainer`.
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
        self._signal_connector = _NoSignals(self)
        if hasattr(self.strategy, "_timeout"):  # strategies with several processes
            self.strategy._timeout = timedelta(minutes=timeout_min)
        epochs, limits = self.fit_loop, self.fit_loop.epoch_loop
        self.fit_loop = FitLoop(self, min_epochs=epochs.min_epochs, max_epochs=epochs.max_epochs)
        self.fit_loop.epoch_loop = EpochLoop(
            self, batches_per_hook, min_steps=limits.min_steps, max_steps=limits.max_steps
        )

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any = None
    ) -> None:
        """Save a checkpoint if all weights are finite. All ranks must call this.

        Raises:
            NonFiniteError: a weight is NaN or infinite.
            CheckpointError: the file cannot be written.
        """
        require_finite(self.lightning_module, self.optimizers, self.global_step)
        super().save_checkpoint(filepath, weights_only, storage_options)

    def _run_stage(self) -> Any:
        with signals.defer_signals() if self.training else nullcontext():
            return super()._run_stage()


class _NoSignals(_SignalConnector):
    """Leaves signals to `project.runtime.signals`: Lightning's handlers save nothing, or wait for ranks."""

    def register_signal_handlers(self) -> None:
        """Register none."""
