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
    """Precision, recall and F1 of K classes, each shaped as the counts are; see `class_scores`."""

    precision: Tensor
    recall: Tensor
    f1: Tensor

    def macro(self) -> "ClassScores":
        """Means over the classes, the first dimension, that there are images of or that were chosen."""
        return ClassScores(*(score.nanmean(0) for score in self))


def class_scores(hits: Tensor, images: Tensor, chosen: Tensor) -> ClassScores:
    """Compute precision, recall and F1 (van Rijsbergen 1979, Information Retrieval, ch. 7).

    They are those of scikit-learn's `precision_recall_fscore_support` with `labels=None, zero_division=0`.
    Precision of a class that is never chosen is 0, and so is recall of a class that is chosen and has no
    images. All three are NaN for a class with neither, which scikit-learn leaves out.

    Args:
        hits: (K, …), floats: images of each class for which it was chosen.
        images: likewise, of each class.
        chosen: likewise, for which it was chosen.
    """
    found = images + chosen > 0

    def share(whole: Tensor) -> Tensor:
        return torch.where(found & (whole == 0), 0.0, hits / whole)

    return ClassScores(share(chosen), share(images), f1=2 * hits / (images + chosen))  # 0 / 0 is NaN
