"""Training step without Lightning's hooks, and the conditions under which it applies."""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, Timer
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from project.callbacks.training_stats import TrainingStats
from project.runtime import lightning_private
from project.runtime.lightning_private import DataFetcher, EpochLoopBase, StepReadsLoader, block_gradient_sync

BATCH_HOOKS = (
    *("on_train_batch_start", "on_train_batch_end", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_before_zero_grad"),
)
TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
MODULE_HOOKS = (
    *(*BATCH_HOOKS, *TRANSFER_HOOKS, "lr_scheduler_step"),
    *("backward", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping"),
)
"""Hooks that Lightning calls for every batch, but the batched loop does not."""

PRECISIONS = (Precision, MixedPrecision, HalfPrecision, DoublePrecision)
STRATEGIES = (SingleDeviceStrategy, DDPStrategy)


class TrainingStep:
    """Forward pass, backward pass and, unless gradients accumulate, the optimizer step.

    The order of operations is that of Lightning's automatic optimization.

    Args:
        trainer: trainer of the run.
        loop: epoch loop whose progress counters are updated.
    """

    def __init__(self, trainer: L.Trainer, loop: EpochLoopBase) -> None:
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
        self._zero_grad = _bare_zero_grad(self.optimizer)
        self._optimizer_step = _bare_step(self.optimizer)
        self.trainer = trainer
        self.training_stats = [
            callback
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, TrainingStats)
        ]
        self._before_transfer = lightning_private.transfer_hook(self.module)
        self._moves = not getattr(trainer.datamodule, "batches_on_device", False)  # type: ignore[attr-defined]
        self._converts = type(self.precision).convert_input is not Precision.convert_input
        plain = type(self.precision) is Precision and type(self.strategy) is SingleDeviceStrategy
        self._training_step = self.module.training_step if plain else self.strategy.training_step

    def convert(self, batch: Any) -> Any:
        """Convert a batch to the run's precision, and move it to the device unless the loader does."""
        if self._converts:
            batch = self.precision.convert_input(batch)
        if self._moves:
            batch = self._before_transfer(batch, dataloader_idx=0)
            batch = self.strategy.batch_to_device(batch, dataloader_idx=0)
        return batch

    def __call__(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Train on a batch; return the outputs in the form that Lightning passes to hooks."""
        accumulates = self.accumulate > 1 and self.loop.should_accumulate()
        with block_gradient_sync(self.strategy) if accumulates else nullcontext():
            outputs, loss = self._outputs_of(self._training_step(batch, batch_idx))
            if batch_idx % self.accumulate == 0:
                self._zero_grad()
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
        for stats in self.training_stats:
            if stats.wants_gradient(self.trainer):
                stats.take_gradient(self.optimizer, None if self.scaler is None else self.scaler._scale)
        if self.scaler is None:
            if self.clip:
                self.precision.clip_gradients(self.optimizer, self.clip, self.clip_algorithm)
            self._optimizer_step()
            return
        if self.clip:
            self.scaler.unscale_(self.optimizer)
            # Lightning's own method rejects fused optimizers, although they unscale gradients only once.
            Precision.clip_gradients(self.precision, self.optimizer, self.clip, self.clip_algorithm)
        self.scaler.step(self.optimizer)
        self.scaler.update()


# torch wraps `zero_grad` and `step` in profiler records and hook calls. On a CPU, a step of a small network
# takes 10 % less time without the wrappers (`benchmarks/step_cost.py`, mlp). Tested with torch 2.15.


def _bare_zero_grad(optimizer: Optimizer) -> Callable[[], object]:
    """Return `zero_grad` of an optimizer without the profiler record, unless its class overrides it."""
    if type(optimizer).zero_grad is not Optimizer.zero_grad:
        return optimizer.zero_grad
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def zero_grad() -> None:
        for parameter in parameters:
            parameter.grad = None

    return zero_grad


def _bare_step(optimizer: Optimizer) -> Callable[[], object]:
    """Return `step` of an optimizer without the profiler record, unless hooks are registered."""
    step, patched = type(optimizer).step, vars(optimizer).get("step")
    hooks = (
        *(optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks),
        *(torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks),
    )
    is_patched = patched is not None and not hasattr(patched, "_wrapped_by_lr_sched")
    if any(hooks) or is_patched or not getattr(step, "hooked", False):
        return optimizer.step
    optimizer._opt_called = True  # type: ignore[attr-defined]  # schedulers warn without it
    return partial(step.__wrapped__, optimizer)  # type: ignore[attr-defined]


def fetch_from(data_fetcher: DataFetcher) -> Callable[[], Any]:
    """Return a function that fetches the next batch; a single loader's iterator is called directly.

    Lightning's iterator, which can combine several loaders, takes as long as a step of a small network.
    """
    batches, length = lightning_private.iterator_of_only_loader(data_fetcher), data_fetcher.length
    if batches is None:
        return lambda: next(data_fetcher)[0]
    assert length is not None  # `find_obstacle` rejects loaders without a length

    def fetch() -> Any:
        batch = next(batches)
        data_fetcher.fetched += 1
        data_fetcher.done = data_fetcher.fetched >= length
        return batch

    return fetch


def find_obstacle(trainer: L.Trainer, data_fetcher: DataFetcher) -> str | None:
    """Return the reason why hooks must be called for every batch; None if there is no reason."""
    module = trainer.lightning_module
    if not module.automatic_optimization:
        return f"{type(module).__name__} optimizes by itself (automatic_optimization=False)"
    if type(trainer.strategy) not in STRATEGIES:
        return f"trainer.strategy={type(trainer.strategy).__name__} has a training step of its own"
    if lightning_private.averages_models(trainer):
        return "the strategy averages models in a training step of its own"
    if type(trainer.precision_plugin) not in PRECISIONS:
        return f"trainer.precision={trainer.precision} has a training step of its own"
    if type(trainer.profiler) is not PassThroughProfiler:  # type: ignore[attr-defined]
        return "trainer.profiler measures every batch"
    if isinstance(data_fetcher, StepReadsLoader) or data_fetcher.length is None:
        return "the data loader has no length, or is read by the training step itself"
    if _needs_closure(trainer.optimizers[0]):
        return f"{type(trainer.optimizers[0]).__name__} computes the loss several times a step"
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.interval == "step":
            return "a plateau schedule looks at a metric at every step"
    owners: list[tuple[object, tuple[str, ...]]] = [(module, MODULE_HOOKS)]
    owners += [(callback, BATCH_HOOKS) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    if trainer.datamodule is not None:  # type: ignore[attr-defined]
        owners.append((trainer.datamodule, TRANSFER_HOOKS))  # type: ignore[attr-defined]
    for owner, hooks in owners:
        if hook := next((hook for hook in hooks if not _supports_groups(owner, hook)), None):
            return f"{type(owner).__name__}.{hook} is called for every batch"
    return None


def _needs_closure(optimizer: Optimizer) -> bool:
    parameter = inspect.signature(type(optimizer).step).parameters.get("closure")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _supports_groups(owner: object, hook: str) -> bool:
    """Return True if a hook may be called once per group: it is Lightning's, or its class allows it."""
    if hook in vars(owner):
        return False
    definer = next(cls for cls in type(owner).__mro__ if hook in vars(cls))
    return (
        definer in (Callback, ModelCheckpoint, Timer)
        or definer.__module__.startswith("lightning.pytorch.core.")
        or bool(vars(definer).get("supports_batched_hooks"))
    )
