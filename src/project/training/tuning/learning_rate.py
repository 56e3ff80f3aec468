"""The learning-rate range test (Smith 2017, arXiv 1506.01186, sec. 3.3).

Not Lightning's `Tuner.lr_find`: it gives all groups one rate, where blocks (`layer_decay`) and roles have
rates in proportion, and wants a module that keeps its rate as an attribute.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from project.errors import NonFiniteError
from project.modules.classifier import ImageClassifier
from project.modules.optim.schedules import Length, Schedule
from project.training.tuning.restore import as_before

STEPS = 200
LOWEST, HIGHEST = 1e-7, 10.0
SMOOTHING = 0.9
"""Share of the running mean of the loss that a step keeps."""
DIVERGED = 3.0
"""The test ends where the smoothed loss is so many times its lowest."""
FEWEST = 20
"""Steps before which the test does not end: the first losses are of a network that knows nothing."""


@dataclass(frozen=True)
class RangeTest:
    """What a range test showed.

    Args:
        rates: learning rate of each step, rising.
        losses: smoothed training loss at each.
        suggestion: see `suggest`; None if the loss did not fall anywhere.
    """

    rates: list[float]
    losses: list[float]
    suggestion: float | None


class Watch(Callback):
    """Keeps the loss of each optimizer step, and ends the test where it diverges.

    Args:
        steps: of the test.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.losses: list[float] = []
        self._batches: list[torch.Tensor] = []
        self._mean = 0.0
        self._lowest = math.inf

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss when the optimizer has taken its step."""
        self._batches.append(outputs["loss"] * trainer.accumulate_grad_batches)
        if trainer.global_step == len(self.losses):
            return
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
        if len(self.losses) > FEWEST and smooth > DIVERGED * self._lowest:
            trainer.should_stop = True


def rise(
    module: ImageClassifier,
    datamodule: L.LightningDataModule,
    make_trainer: Callable[..., L.Trainer],
    *,
    steps: int = STEPS,
    lowest: float = LOWEST,
    highest: float = HIGHEST,
) -> RangeTest:
    """Train for a moment while the learning rate rises exponentially; leave the network as it was.

    Args:
        module: its optimizer as it is configured. Rates are those of `optim.lr`; groups with others keep
            their proportion to it.
        datamodule: whose training batches are used.
        make_trainer: of options.
        steps: of the optimizer, from the lowest to the highest rate.
        lowest: learning rate of the first step.
        highest: of the last.
    """
    watch = Watch(steps)
    trainer = make_trainer(
        max_steps=steps,
        max_epochs=-1,
        max_time=None,
        batches_per_hook=1,
        limit_val_batches=0,
        callbacks=[watch],
    )
    growth = (highest / lowest) ** (1 / max(1, steps - 1))

    def rising(optimizer: Optimizer, length: Length) -> Schedule:
        peak = optimizer.defaults["lr"]
        return {
            "scheduler": LambdaLR(optimizer, lambda step: lowest / peak * growth**step),
            "interval": "step",
        }

    with as_before(module):
        module.scheduler_factory = rising
        with suppress(NonFiniteError):  # that is an end too
            trainer.fit(module, datamodule)
    rates = [lowest * growth**step for step in range(len(watch.losses))]
    return RangeTest(rates, watch.losses, suggest(rates, watch.losses))


def suggest(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Where the loss falls fastest by the logarithm of the rate, but at most a tenth of where it is lowest.

    Args:
        rates: rising by a constant factor.
        losses: smoothed.

    Returns:
        Two significant digits; None if the loss never falls.
    """
    lowest = min(range(len(losses)), key=lambda step: losses[step], default=0)
    before = range(1, lowest)
    if not before:
        return None
    steepest = min(before, key=lambda step: losses[step + 1] - losses[step - 1])
    return float(f"{min(rates[steepest], rates[lowest] / 10):.1e}")
