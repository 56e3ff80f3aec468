"""Learning-rate range test (Smith 2017, arXiv 1506.01186, sec. 3.3).

Lightning's `Tuner.lr_find` sets one learning rate for all parameter groups, and needs it as an attribute of
the module. This test keeps the ratios between the learning rates of the groups.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from project.errors import NonFiniteError
from project.modules.optim.schedules import Schedule
from project.modules.optim.training_length import TrainingLength
from project.modules.supervised import SupervisedModule

NUM_STEPS = 200
MIN_LR, MAX_LR = 1e-7, 10.0
SMOOTHING = 0.9
"""Weight of the previous running mean of the loss."""
DIVERGENCE_FACTOR = 3.0
"""The test ends if the smoothed loss exceeds this multiple of its minimum."""
MIN_STEPS = 20
"""Minimum number of steps, because the loss of an untrained network is noisy."""


@dataclass(frozen=True)
class RangeTest:
    """Result of a learning-rate range test."""

    rates: list[float]  # learning rate of each step, increasing
    losses: list[float]  # smoothed loss of each step
    suggestion: float | None  # learning rate; None if the loss never fell


class LossRecorder(Callback):
    """Records the smoothed loss of each optimizer step, and stops training if the loss diverges."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self._batches: list[torch.Tensor] = []
        self._mean = 0.0
        self._lowest = math.inf

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches.append(outputs["loss"] * trainer.accumulate_grad_batches)
        if trainer.global_step == len(self.losses):
            return  # gradients accumulate
        mean = torch.stack(self._batches).mean()
        self._batches.clear()
        loss = float(trainer.strategy.reduce(mean, reduce_op="mean"))  # the same on all ranks
        if not math.isfinite(loss):
            trainer.should_stop = True
            return
        self._mean = SMOOTHING * self._mean + (1 - SMOOTHING) * loss
        smooth = self._mean / (1 - SMOOTHING ** (len(self.losses) + 1))
        self.losses.append(smooth)
        self._lowest = min(self._lowest, smooth)
        if len(self.losses) > MIN_STEPS and smooth > DIVERGENCE_FACTOR * self._lowest:
            trainer.should_stop = True


def run_range_test(
    module: SupervisedModule,
    datamodule: L.LightningDataModule,
    make_trainer: Callable[..., L.Trainer],
    *,
    steps: int = NUM_STEPS,
    lowest: float = MIN_LR,
    highest: float = MAX_LR,
) -> RangeTest:
    """Train with an exponentially growing learning rate, then restore the network.

    Args:
        module: module to train.
        datamodule: training data.
        make_trainer: builds a trainer from options.
        steps: number of optimizer steps.
        lowest: first learning rate.
        highest: last learning rate.
    """
    recorder = LossRecorder()
    trainer = make_trainer(
        max_steps=steps,
        max_epochs=-1,
        max_time=None,
        batches_per_hook=1,
        limit_val_batches=0,
        callbacks=[recorder],
    )
    growth = (highest / lowest) ** (1 / max(1, steps - 1))

    def rising(optimizer: Optimizer, length: TrainingLength) -> Schedule:
        peak = optimizer.defaults["lr"]
        return {
            "scheduler": LambdaLR(optimizer, lambda step: lowest / peak * growth**step),
            "interval": "step",
        }

    with restored_on_exit(module):
        module.scheduler_factory = rising
        with suppress(NonFiniteError):  # a diverging loss ends the test, too
            trainer.fit(module, datamodule)
    rates = [lowest * growth**step for step in range(len(recorder.losses))]
    return RangeTest(rates, recorder.losses, suggest_lr(rates, recorder.losses))


@contextmanager
def restored_on_exit(module: SupervisedModule) -> Iterator[None]:
    """Restore the weights, buffers and schedule of a module on exit."""
    state = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
    schedule = module.scheduler_factory
    try:
        yield
    finally:
        module.zero_grad()
        module.load_state_dict(state)
        module.scheduler_factory = schedule
        module.train_metrics.reset()


def suggest_lr(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return the learning rate at which the loss falls fastest; None if the loss never falls.

    The learning rate is at most a tenth of the one with the lowest loss, and has two significant digits.
    """
    lowest = min(range(len(losses)), key=lambda step: losses[step], default=0)
    before = range(1, lowest)
    if not before:
        return None
    steepest = min(before, key=lambda step: losses[step + 1] - losses[step - 1])
    return float(f"{min(rates[steepest], rates[lowest] / 10):.1e}")
