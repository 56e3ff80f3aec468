"""Losses for classes, several labels per input, and weights of classes and labels by their frequency."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from project.errors import InputError
from project.runtime.bounds import Range


@runtime_checkable
class FitsToTargets(Protocol):
    """Loss or module with values computed from the training targets, before the first step."""

    needs_targets: bool
    """True if the values are computed, and not configured."""

    def fit_targets(self, targets: Tensor) -> None:
        """Set the values from the targets of the training split: (N,), (N, K) or (N, D)."""
        ...


class CrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy with label smoothing (Szegedy et al. 2016, sec. 7) and class weights.

    Maps logits (B, K) and class indices (B,), or probabilities (B, K) as from mixup, to a scalar. With class
    weights w, the mean over images i with labels y is Σ w[y_i] ℓ_i / Σ w[y_i], as in torch. In training, both
    sums run over all images of an optimizer step on all devices. In logged values, they run over all images
    of the interval, epoch or split.

    Args:
        num_classes: number of logits.
        label_smoothing: fraction of the target that is spread evenly over all classes, 0 to 1 [0].
        class_weights: one weight per class; `balanced`: computed from the training split, see
            `balanced_class_weights`; None: equal weights.

    Raises:
        InputError: the number of weights is not `num_classes`.
    """

    def __init__(
        self,
        num_classes: int,
        label_smoothing: Annotated[float, Range(0, 1)] = 0.0,
        class_weights: Annotated[Sequence[float], Range(0)] | Literal["balanced"] | None = None,
    ) -> None:
        is_balanced = isinstance(class_weights, str)
        weights = [1.0] * num_classes if isinstance(class_weights, str) else class_weights
        if weights is not None and len(weights) != num_classes:
            raise InputError(
                f"loss.class_weights={list(weights)}: {len(weights)} weights "
                f"for data.num_classes={num_classes}; give one per class"
            )
        weight = None if weights is None else torch.tensor(weights, dtype=torch.float)
        super().__init__(weight=weight, label_smoothing=label_smoothing)
        self.num_classes = num_classes
        self.needs_targets = is_balanced

    def fit_targets(self, targets: Tensor) -> None:
        """Compute balanced class weights from the training labels (N,)."""
        if self.weight is not None:
            self.weight.copy_(balanced_class_weights(targets, self.num_classes))


class BinaryCrossEntropy(nn.BCEWithLogitsLoss):
    """Mean binary cross-entropy of logits (B, K) for targets (B, K) from 0 to 1, over inputs and labels.

    Args:
        num_classes: number of labels, K.
        pos_weight: factor of the positive term of each label, above 0; `balanced`: negative per positive
            inputs of the training split; None: 1.

    Raises:
        InputError: the number of weights is not `num_classes`.
    """

    def __init__(
        self,
        num_classes: int,
        pos_weight: Annotated[Sequence[float], Range(above=0)] | Literal["balanced"] | None = None,
    ) -> None:
        weights = [1.0] * num_classes if isinstance(pos_weight, str) else pos_weight
        if weights is not None and len(weights) != num_classes:
            raise InputError(
                f"loss.pos_weight={list(weights)}: {len(weights)} weights for "
                f"data.num_classes={num_classes}; give one per label"
            )
        super().__init__(pos_weight=None if weights is None else torch.tensor(weights, dtype=torch.float))
        self.needs_targets = isinstance(pos_weight, str)

    def fit_targets(self, targets: Tensor) -> None:
        """Compute the weights of positives from the training labels (N, K)."""
        if self.pos_weight is None:
            return
        positive = targets.double().sum(0)
        if not bool(positive.all()):
            label = int((positive == 0).nonzero()[0])
            raise InputError(
                f"loss.pos_weight=balanced: label {label} has no positive training input; give the weights"
            )
        self.pos_weight.copy_((len(targets) - positive) / positive)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of logits (B, K) for targets (B, K)."""
        return super().forward(input, target.to(input.dtype))


def balanced_class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Return the weights N / (K n_k) of K classes, of which n_k of N labels (N,) are; (K,) double.

    Source: King and Zeng 2001, "Logistic Regression in Rare Events Data"; equals scikit-learn's
    `compute_class_weight("balanced", …)`.

    Raises:
        InputError: a class has no label.
    """
    counts = labels.bincount(minlength=num_classes).double()
    if not bool(counts.all()):
        missing = int((counts == 0).nonzero()[0])
        raise InputError(
            f"loss.class_weights=balanced: class {missing} has no training images; add some, or give the "
            "weights"
        )
    return len(labels) / (num_classes * counts)


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
