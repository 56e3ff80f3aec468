"""Conditions under which Lightning's own loop trains, with hooks around every batch."""

import inspect

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, Timer
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.optim import Optimizer

BATCH_HOOKS = (
    *("on_train_batch_start", "on_train_batch_end", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_before_zero_grad"),
)
TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
MODULE_HOOKS = (
    *(*BATCH_HOOKS, *TRANSFER_HOOKS, "lr_scheduler_step"),
    *("backward", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping"),
)
"""Hooks that Lightning calls for every batch, and the batched loop does not."""

PRECISIONS = (Precision, MixedPrecision, HalfPrecision, DoublePrecision)
STRATEGIES = (SingleDeviceStrategy, DDPStrategy)


def find_obstacle(trainer: L.Trainer, data_fetcher: _DataFetcher) -> str | None:
    """Return the reason why every batch needs all hooks, None if there is none."""
    module = trainer.lightning_module
    if not module.automatic_optimization:
        return f"{type(module).__name__} optimizes by itself (automatic_optimization=False)"
    if type(trainer.strategy) not in STRATEGIES:
        return f"trainer.strategy={type(trainer.strategy).__name__} has a training step of its own"
    if getattr(trainer.strategy, "_model_averager", None) is not None:
        return "the strategy averages models in a training step of its own"
    if type(trainer.precision_plugin) not in PRECISIONS:
        return f"trainer.precision={trainer.precision} has a training step of its own"
    if type(trainer.profiler) is not PassThroughProfiler:  # type: ignore[attr-defined]
        return "trainer.profiler measures every batch"
    if isinstance(data_fetcher, _DataLoaderIterDataFetcher) or data_fetcher.length is None:
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
    """Return True if a hook may be called once per group: Lightning's own, or allowed by its class."""
    if hook in vars(owner):
        return False
    definer = next(cls for cls in type(owner).__mro__ if hook in vars(cls))
    return (
        definer in (Callback, ModelCheckpoint, Timer)
        or definer.__module__.startswith("lightning.pytorch.core.")
        or bool(vars(definer).get("supports_batched_hooks"))
    )
