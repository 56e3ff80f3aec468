"""Batch sizes by doubling: until memory is full, or there is nothing to gain."""

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
from project.training.tuning.restore import as_before

SMALLEST = 8
WARM_STEPS = 3
MOST_STEPS = 300
TRIAL_S = 1.0
"""Seconds that the steps of a size are measured; a size is given at least two."""
NEAR = 0.95
"""Share of the best throughput from which a size is as good: a larger one takes fewer steps an epoch."""
GROWTH = 1.05
"""By which throughput must grow, on a CPU, for a larger size to be worth trying twice."""


@dataclass(frozen=True)
class Trial:
    """What a batch size was measured to do.

    Args:
        size: images of a step.
        images_per_s: throughput; None if it did not fit into memory.
        memory_mib: most memory of the GPU that tensors took; None on a CPU.
    """

    size: int
    images_per_s: float | None
    memory_mib: float | None


class Pace(Callback):
    """Times steps after a few that do not count, and ends the trial when it has seen enough."""

    visits_chunks = True

    def __init__(self) -> None:
        self.steps_per_s = math.nan
        self._steps = 0
        self._began = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        """Count, unless it was done within the chunk."""
        if trainer.global_step > self._steps:
            self.on_step(trainer, pl_module)

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count a step."""
        self._steps = trainer.global_step
        if self._steps <= WARM_STEPS:
            _wait_for(pl_module.device)
            self._began = time.perf_counter()
        elif time.perf_counter() - self._began > TRIAL_S and self._steps > WARM_STEPS + 1:
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the time."""
        _wait_for(pl_module.device)
        self.steps_per_s = (self._steps - WARM_STEPS) / (time.perf_counter() - self._began)


def try_batch_sizes(
    module: ImageClassifier,
    datamodule: ImageDataModule,
    make_trainer: Callable[..., L.Trainer],
    *,
    tell: Callable[[Trial], object] = id,
) -> list[Trial]:
    """Train a moment with each size, twice as large as the one before; leave the network as it was.

    Ends when a size does not fit into memory, when there are not that many training images, and on a CPU,
    where memory is no limit, when throughput has not grown by 5 % over two sizes.

    Args:
        module: to train.
        datamodule: whose training batches are used.
        make_trainer: of options.
        tell: called with each trial.
    """
    trials: list[Trial] = []
    before = datamodule.batch_size
    try:
        with as_before(module):
            size = SMALLEST
            while True:
                trial = _try(module, datamodule, make_trainer, size)
                trials.append(trial)
                tell(trial)
                size *= 2
                if trial.images_per_s is None or size > datamodule.count("train") or _levelled(trials):
                    return trials
    finally:
        datamodule.batch_size = before


def choose(trials: Sequence[Trial]) -> int:
    """The smallest size within 5 % of the best throughput.

    Raises:
        InputError: not even the smallest fits.
    """
    fitting = {trial.size: trial.images_per_s for trial in trials if trial.images_per_s is not None}
    if not fitting:
        raise InputError(
            f"tune=batch_size: not even {SMALLEST} images fit into memory; choose a smaller model, smaller "
            "images (data.resize), or trainer.precision=bf16-mixed"
        )
    best = max(fitting.values())
    return min(size for size, speed in fitting.items() if speed >= NEAR * best)


def _try(
    module: ImageClassifier, datamodule: ImageDataModule, make_trainer: Callable[..., L.Trainer], size: int
) -> Trial:
    datamodule.batch_size = size
    pace = Pace()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        make_trainer(
            max_steps=WARM_STEPS + MOST_STEPS,
            max_epochs=-1,
            max_time=None,
            limit_val_batches=0,
            callbacks=[pace],
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
    return Trial(size, pace.steps_per_s * size, used or None)


def _levelled(trials: Sequence[Trial]) -> bool:
    """Whether, on a CPU, the last two sizes gained nothing."""
    speeds = [trial.images_per_s or 0.0 for trial in trials]
    on_cpu = all(not trial.memory_mib for trial in trials)
    return on_cpu and len(speeds) > 3 and max(speeds[-2:]) < GROWTH * max(speeds[:-2])


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
