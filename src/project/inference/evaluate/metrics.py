"""What is measured of predictions: one function for the images as they are and for all of their resamples."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from project.modules.class_scores import class_scores, confusion

BINS = 15
"""Of confidence, of equal width (Guo et al. 2017, arXiv 1706.04599, sec. 2 and table 1)."""
TOP = 5
MOST_COUNTS = 2**22
"""Of resamples that are gone through at a time: they stay in the cache."""


@dataclass(frozen=True)
class Predictions:
    """What a network, or several together, said of N images.

    Args:
        log_probabilities: (N, K), natural logarithms of rows that sum to 1: they keep the order of classes
            whose probabilities are too small for a float.
        labels: (N,), long: the true classes.
        chosen: (N,), long: the classes with the highest logit.
        losses: (N,): the training loss of each image; None where it is none of single images.
    """

    log_probabilities: Tensor
    labels: Tensor
    chosen: Tensor
    losses: Tensor | None = None

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return self.log_probabilities.shape[1]

    @cached_property
    def probabilities(self) -> Tensor:
        """(N, K)."""
        return self.log_probabilities.exp()

    @cached_property
    def confidence(self) -> Tensor:
        """(N,): the probability of the class that was chosen."""
        return self.probabilities.gather(1, self.chosen[:, None])[:, 0]

    @cached_property
    def right(self) -> Tensor:
        """(N,), bool: whether that class is the true one."""
        return self.chosen == self.labels

    def confusion(self) -> Tensor:
        """Images by true class and class chosen: (K, K), long."""
        return confusion(self.labels, self.chosen, self.classes)

    @cached_property
    def per_image(self) -> dict[str, Tensor]:
        """What is a mean over images: a value (N,) each, by name.

        `accuracy`; `top5_accuracy`, whether the true class is one of the five most probable, with more than
        five classes; `nll`, the negative logarithm of its probability; `brier`, the squared distance of the
        probabilities from 1 for it and 0 for the others (Brier 1950: 0 best, 2 worst); `loss`.
        """
        log_own = self.log_probabilities.gather(1, self.labels[:, None])
        found = {"accuracy": self.right}
        if self.classes > TOP:
            found["top5_accuracy"] = (self.log_probabilities > log_own).sum(1) < TOP
        if self.losses is not None:
            found["loss"] = self.losses
        brier = self.probabilities.square().sum(1) - 2 * log_own[:, 0].exp() + 1
        return found | {"nll": -log_own[:, 0], "brier": brier}


def bin_of(confidence: Tensor) -> Tensor:
    """Which bin (N,) a confidence (N,) lies in: the n-th holds what is above n/15, up to (n + 1)/15."""
    return (confidence.double() * BINS).ceil().long().sub_(1).clamp_(0, BINS - 1)


def measure(predictions: Predictions, counts: Tensor) -> dict[str, Tensor]:
    """Compute all figures, for R ways to count the images.

    Of single classes see `class_scores`; macro averages are means over the classes that have images or
    were chosen, as scikit-learn's are by default.

    The calibration error is the mean over images of |accuracy - confidence| of their bin (ECE; Guo et al.
    2017, arXiv 1706.04599, eq. 3).

    Args:
        predictions: of N images.
        counts: (N, R), floats: how often each image counts; ones for the images as they are.

    Returns:
        Values (R,) by name, and of `precision`, `recall`, `f1` and `support` those of all classes (R, K).
    """
    kind, total = counts.dtype, counts.sum(0)
    means = predictions.per_image
    values = torch.stack([value.to(kind) for value in means.values()]) @ counts / total  # M, R
    found = dict(zip(means, values, strict=True))

    right, labels, chosen = predictions.right, predictions.labels, predictions.chosen

    def by_class(classes: Tensor, images: Tensor) -> Tensor:
        return images.new_zeros(predictions.classes, images.shape[1]).index_add_(0, classes, images)

    support, predicted = by_class(labels, counts), by_class(chosen, counts)  # K, R
    scores = class_scores(by_class(labels[right], counts[right]), support, predicted)
    for name, value, mean in zip(scores._fields, scores, scores.macro(), strict=True):
        found[name] = value.T
        found[f"macro_{name}"] = mean
    found["support"] = support.T

    excess = (predictions.confidence - right.to(predictions.confidence)).to(kind)
    bins = bin_of(predictions.confidence)
    gaps = counts.new_zeros(BINS, counts.shape[1]).index_add_(0, bins, counts * excess[:, None])
    found["ece"] = gaps.abs().sum(0) / total
    return found


def measured(predictions: Predictions) -> dict[str, Tensor]:
    """All figures of the images as they are: scalars, and (K,) for those of all classes."""
    ones = torch.ones(len(predictions.labels), 1, dtype=torch.float64)
    return {name: value[0] for name, value in measure(predictions, ones).items()}


def intervals(
    predictions: Predictions, resamples: int, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[Tensor, Tensor]]:
    """Bounds within which the figures lie in most resamples of the images, drawn with replacement.

    The percentile bootstrap (Efron & Tibshirani 1993, An Introduction to the Bootstrap, sec. 13.3). It says
    how much the choice of test images matters, nothing of other seeds in training. The calibration error
    grows with the noise of its bins, and resampling adds some: its bounds tend to lie high.

    Args:
        predictions: of N images.
        resamples: how many.
        seed: of a generator of their own.
        level: share of the resamples between the bounds.

    Returns:
        Lower and upper bounds by name, shaped as `measured` has the figures.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[Tensor]] = {}
    for counts in _resampled(len(predictions.labels), resamples, generator):
        for name, values in measure(predictions, counts).items():
            parts.setdefault(name, []).append(values)
    outside = (1 - level) / 2
    found = {}
    for name, chunks in parts.items():
        if name != "support":
            whole = torch.cat(chunks).double()
            ends = torch.tensor([outside, 1 - outside], dtype=torch.float64)
            low, high = whole.nanquantile(ends, dim=0)
            found[name] = low, high
    return found


def _resampled(images: int, resamples: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield how often each image is drawn (N, R'), float32, until there are so many resamples."""
    most = max(1, min(128, MOST_COUNTS // images))
    for first in range(0, resamples, most):
        width = min(most, resamples - first)
        cells = torch.randint(images, (images, width), generator=generator).mul_(width)
        cells += torch.arange(width)
        yield torch.bincount(cells.flatten(), minlength=images * width).view(images, width).float()


def reliability(predictions: Predictions) -> dict[str, Tensor]:
    """Of each bin of confidence its `images`, their mean `confidence` and `accuracy`: (15,), 0 if empty."""
    bins = bin_of(predictions.confidence)
    images = torch.bincount(bins, minlength=BINS)

    def mean(values: Tensor) -> Tensor:
        return torch.bincount(bins, values.double(), minlength=BINS) / images.clamp(min=1)

    return {
        "images": images,
        "confidence": mean(predictions.confidence),
        "accuracy": mean(predictions.right),
    }
