"""How well each class is told from the others: the same figures after training, on screens and in reports."""

from typing import NamedTuple

import torch
from torch import Tensor


def confusion(labels: Tensor, chosen: Tensor, classes: int) -> Tensor:
    """Count images by true class (row) and class chosen (column): (K, K), long.

    Args:
        labels: (N,), long: the true classes.
        chosen: (N,), long.
        classes: their number K.
    """
    return torch.bincount(labels * classes + chosen, minlength=classes**2).view(classes, classes)


class ClassScores(NamedTuple):
    """Precision, recall and F1 of K classes, each shaped as the counts are."""

    precision: Tensor
    recall: Tensor
    f1: Tensor

    def macro(self, images: Tensor) -> "ClassScores":
        """Means over the classes, which are the first dimension, that there are images (K, …) of."""
        there = images > 0
        count = there.sum(0)
        return ClassScores(*(torch.where(there, score, 0.0).sum(0) / count for score in self))


def class_scores(hits: Tensor, images: Tensor, chosen: Tensor) -> ClassScores:
    """Compute precision, recall and F1 (van Rijsbergen 1979, Information Retrieval, ch. 7).

    A class's precision is 0 by convention where it is never chosen though there are images of it, as
    scikit-learn has it. Recall of a class without images, and precision and F1 of one that is not chosen
    either, are nan.

    Args:
        hits: (K, …), floats: images of each class for which it was chosen.
        images: likewise, of each class.
        chosen: likewise, for which it was chosen.
    """
    precision = torch.where((images > 0) & (chosen == 0), 0.0, hits / chosen)
    return ClassScores(precision, recall=hits / images, f1=2 * hits / (images + chosen))  # 0 / 0 is nan
