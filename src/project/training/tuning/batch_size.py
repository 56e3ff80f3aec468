"""Batch size search: doubles the size until memory is full or throughput stops growing."""

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.memory import is_oom_error

from project.datamodules.base import SupervisedDataModule
from project.errors import InputError
from project.modules.supervised import SupervisedModule
from project.training.tuning.range_test import restored_on_exit

MIN_BATCH_SIZE = 8
WARMUP_STEPS = 3
MAX_STEPS = 300
TRIAL_S = 1.0
"""Minimum time of a measurement, s, and at least two steps."""
GOOD_FRACTION = 0.95
"""Fraction of the best throughput that counts as equally fast."""
MIN_GROWTH = 1.05
"""Factor by which throughput must grow over two doublings; otherwise the search on a CPU ends."""


@dataclass(frozen=True)
class BatchSizeTrial:
    """Measured throughput and memory of one batch size."""

    size: int  # images per step
    images_per_s: float | None  # None if the size did not fit into memory
    memory_mib: float | None  # peak memory of tensors on the GPU; None on a CPU


class ThroughputMeter(Callback):
    """Measures steps per second after a warm-up, and stops training."""

    supports_batched_hooks = True

    def __init__(self) -> None:
        self.steps_per_s = math.nan
        self._steps = 0
        self._began = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        if trainer.global_step > self._steps:
            self.on_optimizer_step(trainer, pl_module)

    def on_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._steps = trainer.global_step
        if self._steps <= WARMUP_STEPS:
            _synchronize(pl_module.device)
            self._began = time.perf_counter()
        elif time.perf_counter() - self._began > TRIAL_S and self._steps > WARMUP_STEPS + 1:
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _synchronize(pl_module.device)
        self.steps_per_s = (self._steps - WARMUP_STEPS) / (time.perf_counter() - self._began)


def try_batch_sizes(
    module: SupervisedModule,
    datamodule: SupervisedDataModule,
    make_trainer: Callable[..., L.Trainer],
    *,
    report: Callable[[BatchSizeTrial], object] = id,
) -> list[BatchSizeTrial]:
    """Train briefly with doubling batch sizes, then restore the network.

    The search ends at the first size that does not fit into memory or exceeds the training set. On a CPU it
    also ends if throughput grew by less than 5 % over two doublings.

    Args:
        module: module to train.
        datamodule: training data.
        make_trainer: builds a trainer from options.
        report: called with each trial.
    """
    trials: list[BatchSizeTrial] = []
    before = datamodule.batch_size
    try:
        with restored_on_exit(module):
            size = MIN_BATCH_SIZE
            while True:
                trial = _run_trial(module, datamodule, make_trainer, size)
                trials.append(trial)
                report(trial)
                size *= 2
                if (
                    trial.images_per_s is None
                    or size > datamodule.count("train")
                    or _is_throughput_saturated(trials)
                ):
                    return trials
    finally:
        datamodule.batch_size = before


def choose_batch_size(trials: Sequence[BatchSizeTrial]) -> int:
    """Return the smallest size within 5 % of the best throughput.

    Raises:
        InputError: the smallest size does not fit into memory.
    """
    fitting = {trial.size: trial.images_per_s for trial in trials if trial.images_per_s is not None}
    if not fitting:
        raise InputError(
            f"tune=batch_size: not even {MIN_BATCH_SIZE} inputs fit into memory; choose a smaller model, "
            "smaller images (data.resize), or trainer.precision=bf16-mixed"
        )
    best = max(fitting.values())
    return min(size for size, speed in fitting.items() if speed >= GOOD_FRACTION * best)


def _run_trial(
    module: SupervisedModule,
    datamodule: SupervisedDataModule,
    make_trainer: Callable[..., L.Trainer],
    size: int,
) -> BatchSizeTrial:
    datamodule.batch_size = size
    meter = ThroughputMeter()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        make_trainer(
            max_steps=WARMUP_STEPS + MAX_STEPS,
            max_epochs=-1,
            max_time=None,
            limit_val_batches=0,
            callbacks=[meter],
        ).fit(module, datamodule)
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or is_oom_error(error)):
            raise
        return BatchSizeTrial(size, None, None)
    finally:
        module.zero_grad()
        module.train_metrics.reset()
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
    used = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0
    return BatchSizeTrial(size, meter.steps_per_s * size, used or None)


def _is_throughput_saturated(trials: Sequence[BatchSizeTrial]) -> bool:
    """Return True if, on a CPU, the last two sizes did not raise throughput by `MIN_GROWTH`."""
    speeds = [trial.images_per_s or 0.0 for trial in trials]
    on_cpu = all(not trial.memory_mib for trial in trials)
    return on_cpu and len(speeds) > 3 and max(speeds[-2:]) < MIN_GROWTH * max(speeds[:-2])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
