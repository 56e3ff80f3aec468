"""Search for a batch size by doubling, until memory is full or throughput stops growing."""

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.memory import is_oom_error

from project.datamodules.base import ImageDataModule
from project.errors import InputError
from project.modules.classifier import ImageClassifier
from project.training.tuning.range_test import restoring

SMALLEST = 8
WARM_STEPS = 3
MOST_STEPS = 300
TRIAL_S = 1.0
"""Seconds for which a size is measured, at least two steps."""
GOOD_FRACTION = 0.95
"""Fraction of the best throughput from which a size counts as equally fast."""
MIN_GROWTH = 1.05
"""Growth of the throughput over two doublings below which the search on a CPU ends."""


@dataclass(frozen=True)
class Trial:
    """Measurement of one batch size."""

    size: int  # images per step
    images_per_s: float | None  # None if the size did not fit into memory
    memory_mib: float | None  # peak memory of tensors on the GPU; None on a CPU


class Stopwatch(Callback):
    """Measures steps per second after a warm-up, and ends the trial."""

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
        if self._steps <= WARM_STEPS:
            _synchronize(pl_module.device)
            self._began = time.perf_counter()
        elif time.perf_counter() - self._began > TRIAL_S and self._steps > WARM_STEPS + 1:
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _synchronize(pl_module.device)
        self.steps_per_s = (self._steps - WARM_STEPS) / (time.perf_counter() - self._began)


def try_batch_sizes(
    module: ImageClassifier,
    datamodule: ImageDataModule,
    make_trainer: Callable[..., L.Trainer],
    *,
    report: Callable[[Trial], object] = id,
) -> list[Trial]:
    """Train briefly with doubling batch sizes, then restore the network.

    The search ends when a size does not fit into memory or exceeds the training set. On a CPU it also ends
    when throughput grew by less than 5 % over two doublings. `report` is called with each trial.
    """
    trials: list[Trial] = []
    before = datamodule.batch_size
    try:
        with restoring(module):
            size = SMALLEST
            while True:
                trial = _try(module, datamodule, make_trainer, size)
                trials.append(trial)
                report(trial)
                size *= 2
                if trial.images_per_s is None or size > datamodule.count("train") or _is_saturated(trials):
                    return trials
    finally:
        datamodule.batch_size = before


def choose(trials: Sequence[Trial]) -> int:
    """Return the smallest size within 5 % of the best throughput.

    Raises:
        InputError: the smallest size does not fit into memory.
    """
    fitting = {trial.size: trial.images_per_s for trial in trials if trial.images_per_s is not None}
    if not fitting:
        raise InputError(
            f"tune=batch_size: not even {SMALLEST} images fit into memory; choose a smaller model, smaller "
            "images (data.resize), or trainer.precision=bf16-mixed"
        )
    best = max(fitting.values())
    return min(size for size, speed in fitting.items() if speed >= GOOD_FRACTION * best)


def _try(
    module: ImageClassifier, datamodule: ImageDataModule, make_trainer: Callable[..., L.Trainer], size: int
) -> Trial:
    datamodule.batch_size = size
    stopwatch = Stopwatch()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        make_trainer(
            max_steps=WARM_STEPS + MOST_STEPS,
            max_epochs=-1,
            max_time=None,
            limit_val_batches=0,
            callbacks=[stopwatch],
        ).fit(module, datamodule)
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or is_oom_error(error)):
            raise
        return Trial(size, None, None)
    finally:
        module.zero_grad()
        module.train_metrics.reset()
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
    used = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0
    return Trial(size, stopwatch.steps_per_s * size, used or None)


def _is_saturated(trials: Sequence[Trial]) -> bool:
    """True if, on a CPU, the last two sizes brought no gain."""
    speeds = [trial.images_per_s or 0.0 for trial in trials]
    on_cpu = all(not trial.memory_mib for trial in trials)
    return on_cpu and len(speeds) > 3 and max(speeds[-2:]) < MIN_GROWTH * max(speeds[:-2])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
