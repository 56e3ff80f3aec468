"""Sanity check that a network can overfit one batch."""

import logging
import math
from collections.abc import Mapping
from typing import Annotated, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from project.errors import InputError
from project.runtime.bounds import Range

log = logging.getLogger(__name__)


class NotLearnedError(RuntimeError):
    """Error that the network did not overfit one batch."""

    exit_code = 1


class OverfitBatch(Callback):
    """Stops training when the batch's loss is near 0 and all images are right; otherwise fails at the end.

    The accuracy counts for tasks that log `train/acc`. The loss is `train/loss`, or for modules without this
    metric the mean of what `training_step` returns.

    Args:
        loss: largest mean loss that passes, above the minimum that label smoothing allows [0.05].

    Raises:
        NotLearnedError: training ends before the check passes.
        InputError: the module returns no loss, as with manual optimization.
    """

    def __init__(self, loss: Annotated[float, Range(above=0)] = 0.05) -> None:
        self.loss = loss
        self._returned: list[Tensor] = []  # losses of the epoch
        self._first_loss: float | None = None
        self._last: tuple[float, float | None] = (math.inf, None)  # loss and accuracy
        self._passed = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        returned = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(returned, Tensor):
            self._returned.append(returned.detach())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        returned = float(torch.stack(self._returned).mean()) if self._returned else None
        self._returned.clear()
        loss, acc = metrics.get("train/loss", returned), metrics.get("train/acc")
        if loss is None:
            raise InputError(
                f"debug=overfit: training_step of {type(pl_module).__name__} returns no loss (expected a "
                "scalar); use debug=one_batch for this task"
            )
        self._first_loss = loss if self._first_loss is None else self._first_loss
        self._last = (loss, acc)
        criterion = getattr(pl_module, "loss", None)
        minimum = minimum_loss(criterion) if isinstance(criterion, nn.Module) else 0.0
        if acc in (1, None) and loss - minimum < self.loss:
            self._passed = trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss, acc = self._last
        steps, first = trainer.global_step, math.nan if self._first_loss is None else self._first_loss
        if not self._passed:
            found, wanted = ("", f"a loss below {self.loss:g}")
            if acc is not None:
                found, wanted = f", with {acc:.0%} correct", "a loss near 0 and 100%"
            raise NotLearnedError(
                f"overfit failed: {steps} steps changed the loss of a batch from {first:.3g} to {loss:.3g}"
                f"{found} (expected {wanted}); raise the learning rate (tune=lr finds optim.lr) or "
                "trainer.max_epochs, switch dropout off, check the loss and the targets, or raise "
                "callbacks.overfit.loss if the lowest possible loss is above 0"
            )
        if trainer.is_global_zero:
            accuracy = "" if acc is None else ", accuracy 100%"
            log.info("\n overfit  passed: loss %.3g%s after %s steps", loss, accuracy, steps)


def minimum_loss(loss: nn.Module) -> float:
    """Return the minimum of a loss for class indices: above 0 with label smoothing (its entropy)."""
    smoothing, classes = getattr(loss, "label_smoothing", 0.0), getattr(loss, "num_classes", 0)
    if not smoothing or not classes:
        return 0.0
    right, wrong = 1 - smoothing + smoothing / classes, smoothing / classes
    return -(right * math.log(right) + (classes - 1) * wrong * math.log(wrong))
