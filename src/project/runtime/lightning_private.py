"""Private names of Lightning and torchmetrics, which no other file uses.

Classes give public names to the private members that their subclasses read or override; functions do the same
for other objects of Lightning. Importing this module imports Lightning. Tested with Lightning 2.6.6;
`pyproject.toml` allows 2.6 from there on.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.loops.fit_loop import RestartStage, _FitLoop
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior, _is_max_limit_reached
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.utilities.combined_loader import _MaxSizeCycle
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_max, dim_zero_min, dim_zero_sum

DataFetcher = _DataFetcher
StepReadsLoader = _DataLoaderIterDataFetcher
"""Data fetcher of a training step that takes the loader's iterator instead of a batch."""
EpochCounts = _ProcessedTracker

block_gradient_sync = _block_parallel_sync_behavior
is_limit_reached = _is_max_limit_reached
call_callback_hooks = call._call_callback_hooks
call_module_hook = call._call_lightning_module_hook
call_strategy_hook = call._call_strategy_hook


class EpochLoopBase(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch.

    The names of one line are Lightning's own methods, so that a call costs no more.
    """

    should_accumulate = _TrainingEpochLoop._should_accumulate
    is_last_batch_done = _TrainingEpochLoop._num_ready_batches_reached
    validates_in_epoch = _TrainingEpochLoop._should_check_val_epoch

    @property
    def is_training_done(self) -> bool:
        """True after the last batch of the epoch or the last step of the training."""
        return bool(self._is_training_done)

    @property
    def is_validation_done(self) -> bool:
        """True if a resumed run has no validation to catch up on. Subclasses may override it."""
        return bool(super()._is_validation_done)

    @property
    def _is_validation_done(self) -> bool:
        return self.is_validation_done

    def is_validation_due(self, data_fetcher: DataFetcher) -> bool:
        """Return True if a validation follows the last batch. Subclasses may override it."""
        return bool(super()._should_check_val_fx(data_fetcher))

    def _should_check_val_fx(self, data_fetcher: DataFetcher) -> bool:
        return self.is_validation_due(data_fetcher)

    @property
    def skips_backward(self) -> bool:
        """True while a callback trains without gradients, as `WeightAveraging` does to update batch norms."""
        return bool(self.automatic_optimization._skip_backward)

    def clear_restarting(self) -> None:
        """Note that this loop continues normally after a restart, and leave its inner loops as they are."""
        self._restarting = False

    def skip_next_validation(self, skip: bool) -> None:
        """Skip the validation that may be due after the current batch, or do not."""
        self._skip_next_val = skip

    def has_logged_in_step(self) -> bool:
        """Return True if the training step has logged values."""
        return any(key.startswith("training_step") for key in self._results)

    def call_hooks_before(self, batch: Any) -> None:
        """Call the hooks before a batch, in Lightning's order."""
        trainer = self.trainer
        trainer._logger_connector.on_batch_start(batch)
        call_callback_hooks(trainer, "on_train_batch_start", batch, self.batch_idx)
        call_module_hook(trainer, "on_train_batch_start", batch, self.batch_idx)
        call_strategy_hook(trainer, "on_train_batch_start", batch, self.batch_idx)
        trainer.lightning_module._current_fx_name = "training_step"  # for a training step that logs

    def call_hooks_after(self, outputs: Any, batch: Any) -> None:
        """Call the hooks after a batch, in Lightning's order, and write what was logged."""
        trainer = self.trainer
        trainer.lightning_module._current_fx_name = None
        call_callback_hooks(trainer, "on_train_batch_end", outputs, batch, self.batch_idx)
        call_module_hook(trainer, "on_train_batch_end", outputs, batch, self.batch_idx)
        trainer._logger_connector.on_batch_end()
        self.batch_progress.increment_completed()
        trainer._logger_connector.update_train_step_metrics()

    def count_batch(self) -> None:
        """Count a batch as completed, and its optimizer step for the loggers."""
        if self.trainer.accumulate_grad_batches == 1 or not self._should_accumulate():
            self._batches_that_stepped += 1
        self.batch_progress.increment_completed()

    def log_epoch_metrics(self) -> None:
        """Write the metrics of the epoch, for which loggers expect the step of the last batch."""
        self._batches_that_stepped -= 1
        self.trainer._logger_connector.update_train_epoch_metrics()
        self._batches_that_stepped += 1

    def before_fetch(self) -> None:
        """Run before Lightning's data fetcher waits for a batch. Subclasses may override it."""

    def after_fetch(self) -> None:
        """Run after Lightning's data fetcher got a batch. Subclasses may override it."""

    def _on_before_fetch(self) -> None:
        super()._on_before_fetch()
        self.before_fetch()

    def _on_after_fetch(self) -> None:
        self.after_fetch()
        super()._on_after_fetch()

    def _broadcast_sigterm_tensor(self) -> None:
        """Do nothing: subclasses synchronize the stop signals of all ranks."""


class FitLoopBase(_FitLoop):
    """Lightning's loop over epochs."""

    epoch_loop: Any

    @_Loop.restarting.setter  # type: ignore[attr-defined, untyped-decorator]
    def restarting(self, restarting: bool) -> None:
        _Loop.restarting.fset(self, self.can_restart(restarting))  # type: ignore[attr-defined]

    def can_restart(self, restarting: bool) -> bool:
        """Return the value that `restarting` gets when it is set. Subclasses may override it."""
        return restarting

    def note_restart(self, *, within_epoch: bool) -> None:
        """Tell Lightning's own methods that the run is resumed within an epoch, or not."""
        self._restart_stage = RestartStage.RESTARTED_MID_EPOCH if within_epoch else RestartStage.NONE


class TrainerBase(L.Trainer):
    """Lightning's Trainer, which runs fit, validation and test within a context manager."""

    def stage_context(self) -> AbstractContextManager[object]:
        """Return the context manager. Subclasses may override it."""
        return nullcontext()

    def _run_stage(self) -> Any:
        with self.stage_context():
            return super()._run_stage()


class _NoSignals(_SignalConnector):
    def register_signal_handlers(self) -> None:
        """Register no handlers."""


def disable_signal_handlers(trainer: L.Trainer) -> None:
    """Keep a trainer from handling signals."""
    trainer._signal_connector = _NoSignals(trainer)


def can_stop_early(trainer: L.Trainer) -> bool:
    """Return True after the minimum number of epochs and steps."""
    return bool(trainer.fit_loop._can_stop_early)


def set_timeout(trainer: L.Trainer, timeout: timedelta) -> None:
    """Set the time that a rank waits for the others, where the strategy has several ranks."""
    strategy: Any = trainer.strategy
    if hasattr(strategy, "_timeout"):
        strategy._timeout = timeout


def logger_connector(trainer: L.Trainer) -> Any:
    """Return the object that collects logged values and passes them to the loggers."""
    return trainer._logger_connector


def logged_results(trainer: L.Trainer) -> Any:
    """Return the collection of values that the running loop logs."""
    results = trainer._results
    assert results is not None
    return results


def accumulation_test(trainer: L.Trainer) -> Callable[[], bool]:
    """Return the function that returns true if the next batch only adds its gradient to that of a step."""
    accumulates: Callable[[], bool] = trainer.fit_loop._should_accumulate
    return accumulates


def transfer_hook(module: L.LightningModule) -> Any:
    """Return the method that calls `on_before_batch_transfer` of the module or data module."""
    return module._on_before_batch_transfer


def trainer_of(module: L.LightningModule) -> Any:
    """Return a module's trainer; None for a module without one, where `module.trainer` raises an error."""
    return module._trainer


def checkpoint_interval(callback: ModelCheckpoint) -> int:
    """Return the number of steps between two checkpoints of a callback; 0 for none within an epoch."""
    return int(callback._every_n_train_steps)


def averages_models(trainer: L.Trainer) -> bool:
    """Return True for DDP with a communication hook that averages models after the optimizer step."""
    return getattr(trainer.strategy, "_model_averager", None) is not None


def iterator_of_only_loader(data_fetcher: DataFetcher) -> Iterator[Any] | None:
    """Return the iterator of a fetcher's loader; None if several loaders are combined."""
    cycle = data_fetcher.combined_loader._iterator
    return cycle.iterators[0] if isinstance(cycle, _MaxSizeCycle) and len(cycle.iterators) == 1 else None


def experiment_of(logger: Any) -> Any:
    """Return a logger's writer; None before the first use."""
    return logger._experiment


def set_experiment(logger: Any, experiment: object) -> None:
    """Give a logger its writer."""
    logger._experiment = experiment


REDUCTIONS: Mapping[str, Callable[..., Any]] = {
    **{f"torch.{name}": getattr(torch, name) for name in ("mean", "sum", "max", "min")},
    "sum": sum,
    "max": max,
    "min": min,
}
"""Values of `reduce_fx` of `LightningModule.log`, by name."""
LOG_OPTIONS = (
    *("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx"),
    *("dataloader_idx", "metric_attribute"),
)
"""Options of `LightningModule.log` that are plain values."""


class EpochValue:
    """Value of `LightningModule.log(..., on_epoch=True)` that an epoch accumulates.

    Attributes:
        metric: sums of the logged tensors; None if a `torchmetrics.Metric` was logged.
    """

    def __init__(self, result: _ResultMetric) -> None:
        self._result = result
        self.metric: Metric | None = result if result.is_tensor else None

    @property
    def reductions(self) -> dict[str, Callable[..., Any] | None]:
        """Functions that reduce the sums over the ranks, by name."""
        meta = self._result.meta
        extreme = dim_zero_max if meta.is_max_reduction else dim_zero_min if meta.is_min_reduction else None
        return {"value": extreme or dim_zero_sum, "cumulated_batch_size": dim_zero_sum}

    def options(self) -> dict[str, Any]:
        """Return the options of `log` as plain values."""
        meta = self._result.meta
        reduction = next(name for name, one in REDUCTIONS.items() if one is meta.reduce_fx)
        return {name: getattr(meta, name) for name in LOG_OPTIONS} | {
            "reduce_fx": reduction,
            "sync_dist": meta.sync.should,
            "rank_zero_only": meta.sync.rank_zero_only,
            "is_tensor": self._result.is_tensor,
        }


class _AdoptedSync(_Sync):
    """Synchronization of a restored value, which becomes that of the next call of `log`."""

    def __eq__(self, other: object) -> bool:
        vars(self).update(vars(other))
        return True


def training_values(trainer: L.Trainer) -> dict[str, EpochValue]:
    """Return the values that the training epoch accumulates, by key."""
    results = trainer.fit_loop.epoch_loop._results
    return {key: EpochValue(one) for key, one in results.items() if one.meta.on_epoch and not one.has_reset}


def add_training_value(trainer: L.Trainer, key: str, options: Mapping[str, Any]) -> EpochValue:
    """Register a value of the training epoch, so that `LightningModule.log` continues to accumulate it.

    Args:
        trainer: in training, before the first batch.
        key: of `training_values`.
        options: of `EpochValue.options`.
    """
    module = trainer.lightning_module
    meta = _Metadata(
        **{name: options[name] for name in LOG_OPTIONS}, reduce_fx=REDUCTIONS[options["reduce_fx"]]
    )
    sync_dist = trainer.world_size > 1 and options["sync_dist"]
    meta.sync = _AdoptedSync(trainer.strategy.reduce, sync_dist, options["rank_zero_only"])
    result = _ResultMetric(meta, options["is_tensor"]).to(module.device)
    if not result.is_tensor:
        result.value = module.get_submodule(options["metric_attribute"])
        result._update_count = 1  # it warns without an update
    trainer.fit_loop.epoch_loop._results[key] = result
    # Otherwise the first batch would count as the first of its epoch, and reset the values.
    trainer._logger_connector._first_loop_iter = False
    return EpochValue(result)


def logged_validation_metrics(trainer: L.Trainer) -> list[Metric]:
    """Return the metrics logged in validation, which Lightning resets after it."""
    results = trainer.fit_loop.epoch_loop.val_loop._results
    return [one.value for one in results.values() if not one.is_tensor]


def reductions_of(metric: Metric) -> dict[str, Callable[..., Any] | None]:
    """Return the functions that reduce a metric's states over the ranks, by name of the state."""
    reductions: Any = metric._reductions
    return dict(reductions)


def set_metric_state(metric: Metric, state: Mapping[str, Tensor | list[Tensor]], updates: int) -> None:
    """Set the states of a metric, and how often it was updated."""
    for name, value in state.items():
        setattr(metric, name, value)
    metric._update_count = updates
    metric._computed = None
