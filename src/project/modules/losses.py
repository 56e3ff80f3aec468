"""Losses on logits; targets are class indices (B,) or, after mixup and cutmix, probabilities (B, K)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from project.errors import InputError


class CrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy with label smoothing (Szegedy et al. 2016, sec. 7) and class weights.

    Args:
        num_classes: number of logits.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1].
        class_weights: one weight a class, or null for equal ones.

    Raises:
        InputError: as many weights are needed as there are classes.
    """

    def __init__(
        self, num_classes: int, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None
    ) -> None:
        if class_weights is not None and len(class_weights) != num_classes:
            raise InputError(
                f"loss.class_weights={list(class_weights)}: {len(class_weights)} weights "
                f"for data.num_classes={num_classes}; give one for each class"
            )
        weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float)
        super().__init__(weight=weight, label_smoothing=label_smoothing)
        self.num_classes = num_classes


class OneHotMSE(nn.Module):
    """Mean squared error between logits and one-hot targets, averaged over images and classes.

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
