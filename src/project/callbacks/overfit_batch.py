"""Sanity check that a network can overfit one batch."""

import logging
import math
from typing import Annotated

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import nn

from project.runtime.bounds import Range

log = logging.getLogger(__name__)


class NotLearnedError(RuntimeError):
    """Error that the network did not overfit one batch."""

    exit_code = 1


class OverfitBatch(Callback):
    """Stops training once all images are classified correctly with a loss near 0; else fails at the end.

    Args:
        loss: largest mean loss that passes, above the minimum that label smoothing allows [0.05].

    Raises:
        NotLearnedError: training ends before the check passes.
    """

    def __init__(self, loss: Annotated[float, Range(above=0)] = 0.05) -> None:
        self.loss = loss
        self._first_loss: float | None = None
        self._last = (math.inf, 0.0)  # loss and accuracy
        self._passed = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss, acc = (float(trainer.callback_metrics[f"train/{name}"]) for name in ("loss", "acc"))
        self._first_loss = loss if self._first_loss is None else self._first_loss
        self._last = (loss, acc)
        minimum = minimum_loss(pl_module.loss) if isinstance(pl_module.loss, nn.Module) else 0.0
        if acc == 1 and loss - minimum < self.loss:
            self._passed = trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss, acc = self._last
        steps, first = trainer.global_step, math.nan if self._first_loss is None else self._first_loss
        if not self._passed:
            raise NotLearnedError(
                f"overfit failed: {steps} steps changed the loss of a batch from {first:.3g} to {loss:.3g}, "
                f"with {acc:.0%} correct (expected a loss near 0 and 100%); raise optim.lr (tune=lr finds a "
                "value) or trainer.max_epochs, switch dropout off, check the loss and the labels"
            )
        if trainer.is_global_zero:
            log.info("\n overfit  passed: loss %.3g, accuracy 100%% after %s steps", loss, steps)


def minimum_loss(loss: nn.Module) -> float:
    """Return the minimum of a loss for class indices: above 0 with label smoothing (its entropy)."""
    smoothing, classes = getattr(loss, "label_smoothing", 0.0), getattr(loss, "num_classes", 0)
    if not smoothing or not classes:
        return 0.0
    right, wrong = 1 - smoothing + smoothing / classes, smoothing / classes
    return -(right * math.log(right) + (classes - 1) * wrong * math.log(wrong))
