"""Overfitting of one batch, as a test that a network can learn."""

import logging
import math
from typing import Annotated

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import nn

from project.runtime.bounds import Range

log = logging.getLogger(__name__)


class NotLearnedError(RuntimeError):
    """A network has not learned one batch; the message has the losses and possible causes."""

    exit_code = 1


class OverfitBatch(Callback):
    """Ends a training on few images when all are right and the loss is near 0, and fails otherwise.

    Args:
        loss: mean over the images that counts as learned, above the least that smoothed labels allow [0.05].
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
        least = least_loss(pl_module.loss) if isinstance(pl_module.loss, nn.Module) else 0.0
        if acc == 1 and loss - least < self.loss:
            self._passed = trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss, acc = self._last
        steps, first = trainer.global_step, math.nan if self._first_loss is None else self._first_loss
        if not self._passed:
            raise NotLearnedError(
                f"overfit failed: {steps} steps took the loss of one batch from {first:.3g} to {loss:.3g}, "
                f"with {acc:.0%} right; it should come near 0: raise optim.lr (tune=lr looks for one) or "
                "trainer.max_epochs, switch dropout off, look at the loss and the labels"
            )
        if trainer.is_global_zero:
            log.info("\n overfit  passed: loss %.3g and all right after %s steps", loss, steps)


def least_loss(loss: nn.Module) -> float:
    """Return the least value of a loss for images of known class: above 0 where labels are smoothed."""
    smoothing, classes = getattr(loss, "label_smoothing", 0.0), getattr(loss, "num_classes", 0)
    if not smoothing or not classes:
        return 0.0
    right, wrong = 1 - smoothing + smoothing / classes, smoothing / classes
    return -(right * math.log(right) + (classes - 1) * wrong * math.log(wrong))
