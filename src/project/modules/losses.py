"""Losses of logits (B, K) for class indices (B,) or probabilities (B, K), as from mixup and cutmix."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from project.errors import InputError
from project.runtime.bounds import Range


class CrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy with label smoothing (Szegedy et al. 2016, sec. 7) and class weights.

    With class weights w, the mean over images i with labels y is Σ w[y_i] ℓ_i / Σ w[y_i], as in torch. In
    training, both sums run over all images of an optimizer step on all devices. In logged values, they run
    over all images of the interval, epoch or split.

    Args:
        num_classes: number of logits.
        label_smoothing: fraction of the target that is spread evenly over all classes, 0 to 1 [0].
        class_weights: one weight per class; None: equal weights.

    Raises:
        InputError: the number of weights is not `num_classes`.
    """

    def __init__(
        self,
        num_classes: int,
        label_smoothing: Annotated[float, Range(0, 1)] = 0.0,
        class_weights: Annotated[Sequence[float], Range(0)] | None = None,
    ) -> None:
        if class_weights is not None and len(class_weights) != num_classes:
            raise InputError(
                f"loss.class_weights={list(class_weights)}: {len(class_weights)} weights "
                f"for data.num_classes={num_classes}; give one per class"
            )
        weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float)
        super().__init__(weight=weight, label_smoothing=label_smoothing)
        self.num_classes = num_classes


class OneHotMSE(nn.Module):
    """Mean squared error between logits and one-hot targets, over images and classes.

    Args:
        num_classes: number of logits.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the scalar loss of logits (B, K) for targets (B,) or (B, K)."""
        if targets.ndim == 1:
            targets = F.one_hot(targets, self.num_classes)  # B, K
        return F.mse_loss(logits, targets.to(logits.dtype))


TotalWeight = Callable[[Tensor], Tensor]
"""Maps targets (…, B) or (…, B, K) to the sum of the images' weights (…,)."""


def total_weight_of(loss: nn.Module) -> TotalWeight | None:
    """Return the function that maps targets to the divisor of a loss's sum over a batch.

    Args:
        loss: one of torch's with class weights or an ignored class; any other is taken for a mean over
            images.

    Returns:
        None where each image has weight 1.
    """
    if not isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        return None
    return partial(_total_weight, loss) if loss.weight is not None or loss.ignore_index >= 0 else None


def _total_weight(loss: nn.CrossEntropyLoss | nn.NLLLoss, targets: Tensor) -> Tensor:
    if targets.is_floating_point():  # torch divides by the number of images where targets are probabilities
        return targets.new_full(targets.shape[:-2], targets.shape[-2])
    counted = targets != loss.ignore_index
    weights = counted.float()
    if loss.weight is not None:
        weights *= loss.weight.float()[targets.where(counted, 0)]
    return weights.sum(-1)
