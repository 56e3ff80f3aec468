"""Gradient of an optimizer step over accumulated batches and several devices."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from project.modules.losses import TotalWeight
from project.runtime import lightning_private


class MeanGradient:
    """Scales batch gradients so that each step has the gradient of the mean loss over all its images.

    The mean loss is Σ wℓ / Σ w, where w is the weight of an image's class, or 1. Lightning instead sums the
    batches' mean losses, each divided by `accumulate_grad_batches`. Images of a smaller batch then count
    more, and the last accumulation window of an epoch, which may have fewer batches, is divided by too many.
    DDP averages over ranks, regardless of class weights.

    Each batch's gradient is multiplied by the batch's weight, relative to the first batch's number of images.
    After the last batch of the window, the sum is divided by the total weight. If all batches are
    of equal size and the window is full, every factor is 1.

    Args:
        trainer: trainer of the run.
        total_weight: maps the targets of a batch to its weight; None: images have no weights.
    """

    def __init__(self, trainer: L.Trainer, total_weight: TotalWeight | None) -> None:
        self.trainer: Any = trainer
        self.total_weight = total_weight
        self._should_accumulate = lightning_private.accumulation_test(trainer)
        self._unit = 0
        self._total: Any = 0

    def share(self, loss: Tensor, targets: Tensor, batch_idx: int) -> None:
        """Scale the backward pass of a batch's mean loss to its share of the step's gradient."""
        batches = self.trainer.accumulate_grad_batches
        if batch_idx % batches == 0:
            self._unit = 0
        starts_window = not self._unit  # also when a run resumes within a window
        if starts_window:
            self._unit, self._total = len(targets), 0
        weight = len(targets) if self.total_weight is None else self.total_weight(targets)
        self._total += weight
        factor = weight / self._unit
        if not self._should_accumulate():
            correction = batches * self._unit / self._mean_over_ranks(self._total)
            if not starts_window:
                self._scale_accumulated(correction)
            factor = factor * correction
            self._unit = 0
        if _may_differ_from_1(factor):
            loss.register_hook(lambda gradient: (gradient * factor).to(gradient.dtype))

    def _mean_over_ranks(self, total: Any) -> Any:
        if self.total_weight is None or self.trainer.world_size == 1:
            return total  # batches have the same size on all ranks
        torch.distributed.all_reduce(total)
        return total / self.trainer.world_size

    def _scale_accumulated(self, factor: Any) -> None:
        weights = self.trainer.lightning_module.parameters()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if gradients and _may_differ_from_1(factor):
            torch._foreach_mul_(gradients, factor)


def _may_differ_from_1(factor: Any) -> bool:
    return isinstance(factor, Tensor) or factor != 1  # reading a tensor would synchronize with its device


def mean_gradient(trainer: L.Trainer, total_weight: TotalWeight | None) -> MeanGradient | None:
    """Return the `MeanGradient` of a training; None if the gradients need no scaling."""
    accumulates = trainer.accumulate_grad_batches > 1
    has_unequal_ranks = total_weight is not None and trainer.world_size > 1
    return MeanGradient(trainer, total_weight) if accumulates or has_unequal_ranks else None
