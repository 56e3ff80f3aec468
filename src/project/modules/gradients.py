"""Gradient of an optimizer step whose images come in several batches or on several devices."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from project.modules.losses import TotalWeight
from project.runtime import lightning_private


class MeanGradient:
    """Scales each batch's gradient so that a step has the gradient of the mean loss over all its images.

    That mean is Σ wℓ / Σ w, with the weights w of the images' classes, or 1. Lightning adds up the batches'
    mean losses, each divided by `accumulate_grad_batches`: images of a smaller batch count more, and an
    epoch's last window, which may have fewer batches, is divided by too many. DDP takes the mean over ranks,
    whatever class weights their images have.

    Each batch's gradient is multiplied by its weight, relative to the first batch's number of images. The
    window's last batch completes the total weight, by which all is divided. Where all batches are equal and
    none is missing, every factor is 1.

    Args:
        trainer: of the run.
        total_weight: maps a batch's targets to its weight; None if images have no weights.
    """

    def __init__(self, trainer: L.Trainer, total_weight: TotalWeight | None) -> None:
        self.trainer: Any = trainer
        self.total_weight = total_weight
        self._should_accumulate = lightning_private.accumulation_test(trainer)
        self._unit = 0
        self._total: Any = 0

    def share(self, loss: Tensor, targets: Tensor, batch_idx: int) -> None:
        """Make the backward pass of a batch's mean loss give its share of the step's gradient."""
        batches = self.trainer.accumulate_grad_batches
        if batch_idx % batches == 0:
            self._unit = 0
        starts_window = not self._unit  # or continues one within which the run was resumed
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
            return total  # the ranks' batches are equally large
        torch.distributed.all_reduce(total)
        return total / self.trainer.world_size

    def _scale_accumulated(self, factor: Any) -> None:
        weights = self.trainer.lightning_module.parameters()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if gradients and _may_differ_from_1(factor):
            torch._foreach_mul_(gradients, factor)


def _may_differ_from_1(factor: Any) -> bool:
    return isinstance(factor, Tensor) or factor != 1  # reading a tensor would wait for its device


def mean_gradient(trainer: L.Trainer, total_weight: TotalWeight | None) -> MeanGradient | None:
    """Return the `MeanGradient` of a training; None where each batch's own gradient is right."""
    accumulates = trainer.accumulate_grad_batches > 1
    has_unequal_ranks = total_weight is not None and trainer.world_size > 1
    return MeanGradient(trainer, total_weight) if accumulates or has_unequal_ranks else None
