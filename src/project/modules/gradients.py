"""The gradient of an optimizer step whose images come in several batches, or lie on several devices."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from project.modules.losses import TotalWeight


class MeanGradient:
    """Makes the gradient of a step the one of the mean loss over all its images.

    That is Σ wℓ / Σ w, with the weights w of the images' classes, or 1.

    Lightning adds up the batches' mean losses, each divided by `accumulate_grad_batches`: images of a smaller
    batch count more, and the last window of an epoch, which may have fewer batches, is divided by too many.
    DDP takes the mean over ranks, whatever class weights their images have.

    Each batch's gradient is multiplied by its weight in units of the window's first number of images. With a
    window's last batch its total weight is known, and all is divided by that. Where all batches are equal and
    none is missing, every factor is 1.

    Args:
        trainer: that trains.
        total_weight: of a batch's targets; None if images have no weights.
    """

    def __init__(self, trainer: L.Trainer, total_weight: TotalWeight | None) -> None:
        self.trainer: Any = trainer
        self.total_weight = total_weight
        self._unit = 0
        self._total: Any = 0

    def share(self, loss: Tensor, targets: Tensor, batch_idx: int) -> None:
        """Have the backward pass of a batch give its share of the step's gradient.

        Args:
            loss: the batch's mean; its value stays.
            targets: (B,) or (B, K).
            batch_idx: the batch's number in the epoch.
        """
        batches = self.trainer.accumulate_grad_batches
        if batch_idx % batches == 0:
            self._unit = 0
        begins = not self._unit  # a window, or what is left of one when a run is resumed
        if begins:
            self._unit, self._total = len(targets), 0
        weight = len(targets) if self.total_weight is None else self.total_weight(targets)
        self._total += weight
        factor = weight / self._unit
        if not self.trainer.fit_loop._should_accumulate():
            correction = batches * self._unit / self._mean_over_ranks(self._total)
            if not begins:
                self._scale(correction)
            factor = factor * correction
            self._unit = 0
        if _is_factor(factor):
            loss.register_hook(lambda gradient: (gradient * factor).to(gradient.dtype))

    def _mean_over_ranks(self, total: Any) -> Any:
        """Mean of the ranks' total weights; their batches are equally large."""
        if self.total_weight is None or self.trainer.world_size == 1:
            return total
        torch.distributed.all_reduce(total)
        return total / self.trainer.world_size

    def _scale(self, factor: Any) -> None:
        """Multiply the gradients that are accumulated."""
        gradients = [
            weight.grad for weight in self.trainer.lightning_module.parameters() if weight.grad is not None
        ]
        if gradients and _is_factor(factor):
            torch._foreach_mul_(gradients, factor)


def _is_factor(factor: Any) -> bool:
    """Return whether a factor may differ from 1; to read a tensor would wait for its device."""
    return isinstance(factor, Tensor) or factor != 1


def mean_gradient(trainer: L.Trainer, total_weight: TotalWeight | None) -> MeanGradient | None:
    """Return what a training step needs for its gradient; None where a batch's own is right as it is."""
    several_batches = trainer.accumulate_grad_batches > 1
    weighs_ranks = total_weight is not None and trainer.world_size > 1
    return MeanGradient(trainer, total_weight) if several_batches or weighs_ranks else None
