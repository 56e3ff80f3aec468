"""Metrics of predictions, with intervals and calibration."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from project.modules.metrics import class_scores, confusion_counts
from project.runs.intervals import f1_interval, wilson

BINS = 15
"""Confidence bins of equal width (Guo et al. 2017, arXiv 1706.04599, sec. 2 and table 1)."""
TOP = 5
FRACTIONS = {"accuracy", "top5_accuracy"}
"""Metrics that are fractions of the images."""
MAX_COUNTS = 2**22
"""Number of image counts that are computed together; they fit the CPU's cache."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of a network, or of an ensemble, for N images.

    Args:
        log_probabilities: natural logarithms of the class probabilities (N, K). They keep the order of
            classes whose probabilities underflow.
        labels: true classes (N,), long.
        predicted: classes with the highest logit (N,), long.
        losses: training loss of each image (N,); None for a loss that is not a mean over images.
    """

    log_probabilities: Tensor
    labels: Tensor
    predicted: Tensor
    losses: Tensor | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.log_probabilities.shape[1]

    @cached_property
    def probabilities(self) -> Tensor:
        """Class probabilities (N, K)."""
        return self.log_probabilities.exp()

    @cached_property
    def confidence(self) -> Tensor:
        """Probability of the predicted class (N,)."""
        return self.probabilities.gather(1, self.predicted[:, None])[:, 0]

    @cached_property
    def is_correct(self) -> Tensor:
        """True where the prediction equals the label (N,), bool."""
        return self.predicted == self.labels

    def confusion(self) -> Tensor:
        """Count images by true and predicted class: (K, K), long."""
        return confusion_counts(self.labels, self.predicted, self.num_classes)

    @cached_property
    def per_image(self) -> dict[str, Tensor]:
        """Values (N,) of the metrics that are means over images.

        `accuracy`; `top5_accuracy` with more than five classes; `nll`, the negative log-likelihood; `brier`,
        the squared distance of the probabilities from the one-hot label (Brier 1950: 0 best, 2 worst);
        `loss`.
        """
        log_true = self.log_probabilities.gather(1, self.labels[:, None])
        values = {"accuracy": self.is_correct}
        if self.num_classes > TOP:
            values["top5_accuracy"] = (self.log_probabilities > log_true).sum(1) < TOP
        if self.losses is not None:
            values["loss"] = self.losses
        brier = self.probabilities.square().sum(1) - 2 * log_true[:, 0].exp() + 1
        return values | {"nll": -log_true[:, 0], "brier": brier}


def confidence_bin(confidence: Tensor) -> Tensor:
    """Return the bin (N,) of each confidence (N,); bin n holds the values in (n/15, (n + 1)/15]."""
    return (confidence.double() * BINS).ceil().long().sub_(1).clamp_(0, BINS - 1)


def weighted_metrics(predictions: Predictions, counts: Tensor) -> dict[str, Tensor]:
    """Compute all metrics for R weightings of the images.

    Scores of single classes are those of `class_scores`. Macro averages are means over the classes that have
    images or predictions, as scikit-learn's are by default. `ece` is the expected calibration error, the
    mean over images of |accuracy - confidence| of their bin (Guo et al. 2017, arXiv 1706.04599, eq. 3).

    Args:
        predictions: predictions for N images.
        counts: number of times that each image counts (N, R), floating point.

    Returns:
        Values (R,) by name; `precision`, `recall`, `f1` and `support` have one for each class (R, K).
    """
    dtype, total = counts.dtype, counts.sum(0)
    per_image = predictions.per_image
    means = torch.stack([values.to(dtype) for values in per_image.values()]) @ counts / total  # M, R
    metrics = dict(zip(per_image, means, strict=True))

    def sum_by(groups: Tensor, values: Tensor, num_groups: int) -> Tensor:
        return values.new_zeros(num_groups, values.shape[1]).index_add_(0, groups, values)

    labels, correct = predictions.labels, predictions.is_correct
    support = sum_by(labels, counts, predictions.num_classes)  # K, R
    predicted = sum_by(predictions.predicted, counts, predictions.num_classes)
    hits = sum_by(labels[correct], counts[correct], predictions.num_classes)
    scores = class_scores(hits, support, predicted)
    for name, values, mean in zip(scores._fields, scores, scores.macro(), strict=True):
        metrics[name] = values.T
        metrics[f"macro_{name}"] = mean
    metrics["support"] = support.T

    excess = (predictions.confidence - correct.to(predictions.confidence)).to(dtype)
    gaps = sum_by(confidence_bin(predictions.confidence), counts * excess[:, None], BINS)
    metrics["ece"] = gaps.abs().sum(0) / total
    return metrics


def compute_metrics(predictions: Predictions) -> dict[str, Tensor]:
    """Compute all metrics: scalars, and (K,) for metrics per class."""
    ones = torch.ones(len(predictions.labels), 1, dtype=torch.float64)
    return {name: values[0] for name, values in weighted_metrics(predictions, ones).items()}


def bootstrap_intervals(
    predictions: Predictions, num_resamples: int, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[Tensor, Tensor]]:
    """Compute percentile bootstrap intervals over images (Efron & Tibshirani 1993, An Introduction to the
    Bootstrap, sec. 13.3).

    The intervals cover the choice of test images, not the variation between training seeds. Resampling adds
    noise to the bins of the calibration error, so that its interval tends to lie too high.

    Args:
        predictions: predictions for N images.
        num_resamples: number of resamples.
        seed: seed of the resampling.
        level: fraction of the resamples inside the interval.

    Returns:
        Lower and upper bounds by name, shaped as in `compute_metrics`.
    """
    generator = torch.Generator().manual_seed(seed)
    chunks: dict[str, list[Tensor]] = {}
    for counts in _resample(len(predictions.labels), num_resamples, generator):
        for name, values in weighted_metrics(predictions, counts).items():
            chunks.setdefault(name, []).append(values)
    del chunks["support"]
    quantiles = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    intervals = {}
    for name, parts in chunks.items():
        low, high = torch.cat(parts).double().nanquantile(quantiles, dim=0)
        intervals[name] = low, high
    return intervals


def fraction_intervals(predictions: Predictions) -> dict[str, tuple[Tensor, Tensor]]:
    """Compute 95 % intervals of the metrics that are fractions of images, see `project.runs.intervals`.

    They cover the choice of test images, and have a width even if all predictions are right, unlike
    percentiles of a bootstrap.

    Returns:
        Lower and upper bounds by name: of accuracies, and (K,) of precision, recall and F1 of the classes;
        NaN for a class without such images.
    """
    count = len(predictions.labels)
    bounds: dict[str, tuple[Tensor, Tensor]] = {}
    for name in FRACTIONS & predictions.per_image.keys():
        low, high = wilson(float(predictions.per_image[name].double().mean()), count)
        bounds[name] = torch.tensor(low), torch.tensor(high)
    matrix = predictions.confusion()
    hits, labeled, predicted = (part.tolist() for part in (matrix.diag(), matrix.sum(1), matrix.sum(0)))
    unknown = math.nan, math.nan
    rows = list(zip(hits, labeled, predicted, strict=True))
    by_class = {
        "precision": [wilson(hit / said, said) if said else unknown for hit, _, said in rows],
        "recall": [wilson(hit / held, held) if held else unknown for hit, held, _ in rows],
        "f1": [
            f1_interval(hit, held + said - 2 * hit) if held + said else unknown for hit, held, said in rows
        ],
    }
    for name, pairs in by_class.items():
        low, high = torch.tensor(pairs, dtype=torch.float64).T
        bounds[name] = low, high
    return bounds


def _resample(images: int, num_resamples: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield image counts (N, R') float32 of resamples drawn with replacement."""
    chunk = max(1, min(128, MAX_COUNTS // images))
    for first in range(0, num_resamples, chunk):
        width = min(chunk, num_resamples - first)
        cells = torch.randint(images, (images, width), generator=generator).mul_(width)
        cells += torch.arange(width)
        yield torch.bincount(cells.flatten(), minlength=images * width).view(images, width).float()


def reliability(predictions: Predictions) -> dict[str, Tensor]:
    """Compute `images`, mean `confidence` and `accuracy` of each confidence bin: (15,), 0 if empty."""
    bins = confidence_bin(predictions.confidence)
    images = torch.bincount(bins, minlength=BINS)

    def mean(values: Tensor) -> Tensor:
        return torch.bincount(bins, values.double(), minlength=BINS) / images.clamp(min=1)

    return {
        "images": images,
        "confidence": mean(predictions.confidence),
        "accuracy": mean(predictions.is_correct),
    }
