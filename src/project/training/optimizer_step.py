"""One training step without the hooks that Lightning calls around it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.combined_loader import _MaxSizeCycle
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor
from torch.optim import Optimizer


@runtime_checkable
class GradientWatcher(Protocol):
    """Callback that reads the gradients of some steps before they are clipped."""

    def wants_gradient(self, trainer: L.Trainer) -> bool:
        """Return True to read the gradients of the next optimizer step."""
        ...

    def take_gradient(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        """Read the gradients, which are multiplied by `scale` if it is given."""
        ...


class TrainingStep:
    """Forward pass, backward pass and, unless gradients accumulate, the optimizer step.

    The order is that of Lightning's automatic optimization.

    Args:
        trainer: trainer of the run.
        loop: epoch loop whose progress counters are updated.
    """

    def __init__(self, trainer: L.Trainer, loop: _TrainingEpochLoop) -> None:
        self.loop = loop
        self.strategy = trainer.strategy
        self.precision = trainer.precision_plugin
        self.module = trainer.lightning_module
        self.optimizer: Optimizer = trainer.optimizers[0]
        self.accumulate: int = trainer.accumulate_grad_batches
        self.clip = trainer.gradient_clip_val or 0.0
        self.clip_algorithm = trainer.gradient_clip_algorithm or GradClipAlgorithmType.NORM
        self.scaler = getattr(self.precision, "scaler", None)
        self.world_size: int = trainer.world_size
        self.progress = loop.automatic_optimization.optim_progress.optimizer
        self.trainer = trainer
        self.gradient_watchers = [
            callback
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, GradientWatcher)
        ]
        self._moves = not getattr(trainer.datamodule, "batches_on_device", False)  # type: ignore[attr-defined]
        self._converts = type(self.precision).convert_input is not Precision.convert_input
        plain = type(self.precision) is Precision and type(self.strategy) is SingleDeviceStrategy
        self._training_step = self.module.training_step if plain else self.strategy.training_step

    def convert(self, batch: Any) -> Any:
        """Convert a batch to the precision's type and move it to the device, unless its loader did."""
        if self._converts:
            batch = self.precision.convert_input(batch)
        if self._moves:
            batch = self.module._on_before_batch_transfer(batch, dataloader_idx=0)
            batch = self.strategy.batch_to_device(batch, dataloader_idx=0)
        return batch

    def __call__(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Train on a batch and return the outputs as Lightning passes them to hooks."""
        accumulates = self.accumulate > 1 and self.loop._should_accumulate()
        with self._without_synchronization() if accumulates else nullcontext():
            outputs, loss = self._outputs_of(self._training_step(batch, batch_idx))
            if batch_idx % self.accumulate == 0:
                self.optimizer.zero_grad()
                self.progress.zero_grad.increment_by(1)
            if loss is not None:
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        if not accumulates:
            self.progress.step.increment_ready()
            if loss is not None or self.scaler is None:
                self._optimize()
            self.progress.step.increment_completed()
        return outputs

    def _outputs_of(self, returned: Any) -> tuple[dict[str, Any], Tensor | None]:
        """Return the outputs for hooks, and the loss divided by the number of accumulated batches."""
        if isinstance(returned, Tensor):
            loss = returned / self.accumulate if self.accumulate > 1 else returned
            return {"loss": loss.detach()}, loss
        if returned is None and self.world_size > 1:
            raise RuntimeError(
                "training_step returned None on one of several ranks, which would wait for each other"
            )
        result = ClosureResult.from_training_step_output(returned, self.accumulate)
        return result.asdict() if result.loss is not None else {}, result.closure_loss

    def _optimize(self) -> None:
        for watcher in self.gradient_watchers:
            if watcher.wants_gradient(self.trainer):
                watcher.take_gradient(self.optimizer, None if self.scaler is None else self.scaler._scale)
        if self.scaler is None:
            if self.clip:
                self.precision.clip_gradients(self.optimizer, self.clip, self.clip_algorithm)
            self.optimizer.step()
            return
        if self.clip:
            self.scaler.unscale_(self.optimizer)
            # Lightning's method refuses fused optimizers, but they unscale gradients only once.
            Precision.clip_gradients(self.precision, self.optimizer, self.clip, self.clip_algorithm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _without_synchronization(self) -> AbstractContextManager[None]:
        return _block_parallel_sync_behavior(self.strategy)


def fetch_from(data_fetcher: _DataFetcher) -> Callable[[], Any]:
    """Return a function that fetches the next batch, of a single loader from its own iterator.

    Lightning's iterator can combine several loaders, and takes as long as a step of a small network.
    """
    cycle = data_fetcher.combined_loader._iterator
    if not isinstance(cycle, _MaxSizeCycle) or len(cycle.iterators) != 1:
        return lambda: next(data_fetcher)[0]
    batches, length = cycle.iterators[0], data_fetcher.length
    assert length is not None  # `find_obstacle` refuses loaders without a length

    def fetch() -> Any:
        batch = next(batches)
        data_fetcher.fetched += 1
        data_fetcher.done = data_fetcher.fetched >= length
        return batch

    return fetch
