"""Learning-rate range test (Smith 2017, arXiv 1506.01186, sec. 3.3), averaged over several repeats.

Lightning's `Tuner.lr_find` sets one learning rate for all parameter groups, needs it as an attribute of the
module, and reads a single pass of noisy losses. This test keeps the ratios between the learning rates of the
groups.

Suggestions for `model=mlp` with Adam, 8 seeds: 0.0010 to 0.0014 on `data=diabetes`, where 0.001 had the
lowest validation loss of seven rates after 150 steps (3 seeds), and 0.00069 to 0.00076 on `data=digits`. A
single pass with a running mean suggested 1e-6 to 0.003 on `data=diabetes`.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from project.errors import NonFiniteError
from project.modules.optim import schedules
from project.modules.supervised import SupervisedModule

STEPS_PER_DECADE = 25
MIN_LR, MAX_LR = 1e-6, 10.0
NUM_REPEATS = 4
"""Number of passes over the learning rates, each from the initial weights on other batches."""
KERNEL_WIDTH = 0.3
"""Standard deviation of the Gaussian that smooths the mean loss [decades of the learning rate]."""
MIN_FALL = 5.0
"""Smallest fall of the smoothed loss that counts [standard deviations of its noise]."""
SMOOTHING = 0.9
"""Weight of the previous running mean of the loss that detects divergence."""
DIVERGENCE_FACTOR = 3.0
"""A repeat ends if its running mean exceeds this multiple of its minimum."""
MIN_STEPS = 20
"""Minimum number of steps of a repeat, because the loss of an untrained network is noisy."""


@dataclass(frozen=True)
class RangeTest:
    """Result of a learning-rate range test."""

    rates: list[float]  # learning rate of each step, increasing
    losses: list[float]  # smoothed mean loss of each step
    suggestion: float | None  # learning rate; None if the loss never fell
    has_diverged: bool  # a repeat ended before the highest learning rate


class LearningRateRamp(Callback):
    """Raises the learning rate at each optimizer step, and restarts from the initial weights at its end.

    A repeat ends at the last rate, or if the loss diverges.

    Args:
        rates: learning rates of the first parameter group.
        repeats: number of passes over the rates.
    """

    def __init__(self, rates: Sequence[float], repeats: int) -> None:
        self.curves: list[list[float]] = [[]]  # losses by step of each repeat
        self._rates = rates
        self._repeats = repeats
        self._batches: list[torch.Tensor] = []
        self._num_steps = 0
        self._mean = 0.0
        self._lowest = math.inf

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        (optimizer,) = trainer.optimizers
        self._weights = _copied_state(pl_module)
        self._optimizer_state = copy.deepcopy(optimizer.state_dict())
        self._ratios = [group["lr"] / optimizer.defaults["lr"] for group in optimizer.param_groups]

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        rate = self._rates[len(self.curves[-1])]
        for group, ratio in zip(trainer.optimizers[0].param_groups, self._ratios, strict=True):
            group["lr"] = rate * ratio

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches.append(outputs["loss"] * trainer.accumulate_grad_batches)
        if trainer.global_step == self._num_steps:
            return  # gradients accumulate
        self._num_steps = trainer.global_step
        mean = torch.stack(self._batches).mean()
        self._batches.clear()
        loss = float(trainer.strategy.reduce(mean, reduce_op="mean"))  # the same on all ranks
        if self._has_ended(loss):
            self._restart(trainer, pl_module)

    def _has_ended(self, loss: float) -> bool:
        """Record a loss; return true if the repeat ends with it."""
        if not math.isfinite(loss):
            return True
        curve = self.curves[-1]
        curve.append(loss)
        self._mean = SMOOTHING * self._mean + (1 - SMOOTHING) * loss
        smooth = self._mean / (1 - SMOOTHING ** len(curve))
        self._lowest = min(self._lowest, smooth)
        has_diverged = len(curve) > MIN_STEPS and smooth > DIVERGENCE_FACTOR * self._lowest
        return has_diverged or len(curve) == len(self._rates)

    def _restart(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if len(self.curves) == self._repeats:
            trainer.should_stop = True
            return
        self.curves.append([])
        self._mean, self._lowest = 0.0, math.inf
        assert isinstance(module, SupervisedModule)
        module.load_state_dict(self._weights)
        trainer.optimizers[0].load_state_dict(copy.deepcopy(self._optimizer_state))
        module.train_metrics.reset()  # they may hold a loss that is not finite


def run_range_test(
    module: SupervisedModule,
    datamodule: L.LightningDataModule,
    make_trainer: Callable[..., L.Trainer],
    *,
    lowest: float = MIN_LR,
    highest: float = MAX_LR,
    repeats: int = NUM_REPEATS,
) -> RangeTest:
    """Train with exponentially growing learning rates several times, then restore the network.

    Args:
        module: module to train.
        datamodule: training data.
        make_trainer: builds a trainer from options.
        lowest: first learning rate.
        highest: last learning rate.
        repeats: number of passes over the learning rates.
    """
    rates = learning_rates(lowest, highest)
    ramp = LearningRateRamp(rates, repeats)
    trainer = make_trainer(
        max_steps=repeats * len(rates),
        max_epochs=-1,
        min_epochs=None,
        min_steps=None,
        max_time=None,
        batches_per_hook=1,
        limit_val_batches=0,
        log_every_n_steps=repeats * len(rates) + 1,
        callbacks=[ramp],
    )
    with restored_on_exit(module):
        module.scheduler_factory = schedules.constant
        with suppress(NonFiniteError):  # a diverging loss ends the test, too
            trainer.fit(module, datamodule)
    curves = [curve for curve in ramp.curves if len(curve) > MIN_STEPS] or ramp.curves[:1]
    steps = min(map(len, curves))
    mean = np.mean([curve[:steps] for curve in curves], axis=0)
    suggestion, losses = suggest_lr(rates[:steps], mean.tolist())
    return RangeTest(rates[:steps], losses, suggestion, has_diverged=steps < len(rates))


def learning_rates(lowest: float, highest: float) -> list[float]:
    """Return learning rates in equal ratios, 25 per decade, both ends included."""
    steps = round(STEPS_PER_DECADE * math.log10(highest / lowest))
    return [lowest * (highest / lowest) ** (step / steps) for step in range(steps + 1)]


@contextmanager
def restored_on_exit(module: SupervisedModule) -> Iterator[None]:
    """Restore the weights, buffers and schedule of a module on exit."""
    state = _copied_state(module)
    schedule = module.scheduler_factory
    try:
        yield
    finally:
        module.zero_grad()
        module.load_state_dict(state)
        module.scheduler_factory = schedule
        module.train_metrics.reset()


def _copied_state(module: L.LightningModule) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


def suggest_lr(rates: Sequence[float], losses: Sequence[float]) -> tuple[float | None, list[float]]:
    """Find the learning rate at which the loss falls fastest.

    The losses are smoothed by a Gaussian centered at each step, which does not shift the fall to higher rates
    as a running mean does.

    Args:
        rates: learning rates of the steps, in equal ratios of 25 per decade.
        losses: mean loss of each step.

    Returns:
        The learning rate of the steepest fall before the minimum, with two significant digits; None if the
        fall from the first losses to the minimum is within the noise. Then the smoothed losses.
    """
    width = KERNEL_WIDTH * STEPS_PER_DECADE
    reach = min(round(4 * width), len(losses) - 1)
    if reach < 1:
        return None, list(losses)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    kernel /= kernel.sum()
    smooth = np.convolve(np.pad(losses, reach, mode="reflect"), kernel, mode="valid")
    lowest = int(smooth.argmin())
    noise = float(np.std(np.subtract(losses, smooth)[: lowest + 1])) * math.sqrt(float((kernel**2).sum()))
    if lowest == 0 or smooth[0] - smooth[lowest] <= MIN_FALL * noise:
        return None, smooth.tolist()
    steepest = int(np.gradient(smooth)[:lowest].argmin())
    return float(f"{rates[steepest]:.1e}"), smooth.tolist()
