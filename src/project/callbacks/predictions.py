"""Per-image predictions on the test split, and a classification report."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F
from torchmetrics.utilities.distributed import gather_all_tensors

from project.modules.metrics import class_scores, confusion_counts

MAX_CLASS_ROWS = 50
MAX_PAIR_ROWS = 10


class ImagePredictions(NamedTuple):
    """Predictions for n images, on the CPU."""

    indices: Tensor  # n, long: positions in the split
    labels: Tensor  # n, long: true classes
    predictions: Tensor  # n, long: classes with the largest logits
    losses: Tensor  # n, float: cross-entropies
    confidences: Tensor  # n, float: softmax probabilities of the predictions

    def confusion(self, num_classes: int) -> Tensor:
        """Return the confusion matrix (K, K), long: rows are true classes, columns predictions."""
        return confusion_counts(self.labels, self.predictions, num_classes)

    def worst(self, count: int) -> Tensor:
        """Return positions of at most `count` wrong predictions, in descending order of loss."""
        wrong = torch.nonzero(self.predictions != self.labels).flatten()
        order = self.losses[wrong].argsort(descending=True, stable=True)
        return wrong[order[:count]]


class PredictionCollector:
    """Collects predictions on the device of the logits, without synchronizing with it."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def append(self, logits: Tensor, targets: Tensor) -> None:
        """Add logits (B, K) with class indices (B,), or probabilities (B, K), which give their argmax."""
        labels = targets if targets.ndim == 1 else targets.argmax(1)
        log_probabilities = F.log_softmax(logits.float(), 1)
        largest, predictions = log_probabilities.max(1)
        losses = -log_probabilities.gather(1, labels[:, None])[:, 0]
        # Single precision represents class indices up to 2^24 exactly.
        self._parts.append(torch.stack([labels.float(), predictions.float(), losses, largest.exp()]))

    def gather(self) -> ImagePredictions:
        """Return the predictions of all ranks, sorted by image index; collective.

        Rank r of W holds the images r, r + W, r + 2W, …
        """
        parts, self._parts = self._parts, []
        values = torch.cat(parts, 1) if parts else torch.zeros(4, 0)
        is_distributed = dist.is_available() and dist.is_initialized()
        ranks = gather_all_tensors(values) if is_distributed else [values]
        columns = []
        for rank, part in enumerate(ranks):
            indices = rank + len(ranks) * torch.arange(part.shape[1])
            columns.append(torch.cat([indices.double()[None], part.cpu().double()]))
        table = torch.cat(columns, 1)
        table = table[:, table[0].argsort()]
        indices, labels, predictions = table[:3].long()
        return ImagePredictions(indices, labels, predictions, *table[3:].float())


class ClassResult(NamedTuple):
    """Scores of one class, NaN and 0 as in `class_scores`, and its number of images."""

    name: str
    precision: float
    recall: float
    f1: float
    images: int


def class_results(counts: Tensor, class_names: Sequence[str]) -> list[ClassResult]:
    """Return the results of K classes from a confusion matrix (K, K) with true classes as rows."""
    images, predicted = counts.sum(1).double(), counts.sum(0).double()
    columns = [*class_scores(counts.diag().double(), images, predicted), images.long()]
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [ClassResult(str(name), *row) for name, row in zip(class_names, rows, strict=True)]


def classification_report(counts: Tensor, class_names: Sequence[str]) -> str:
    """Return accuracy, scores per class in ascending order of F1, and frequent mistakes, as Markdown.

    Args:
        counts: confusion matrix (K, K) with true classes as rows.
        class_names: names of the K classes.
    """
    results = class_results(counts, class_names)
    correct, images = int(counts.diag().sum()), int(counts.sum())
    scored = [result.f1 for result in results if not math.isnan(result.f1)]
    f1 = sum(scored) / max(1, len(scored))
    lines = [
        f"**Test split:** {correct:,} of {images:,} images correct ({correct / max(1, images):.4f}); "
        f"macro F1 {f1:.4f}",
        "",
        "| class | precision | recall | F1 | images |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    # Classes without images come last.
    results = sorted(results, key=lambda result: (not result.images, math.isnan(result.f1), result.f1))
    for result in results[:MAX_CLASS_ROWS]:
        scores = " | ".join("–" if math.isnan(score) else f"{score:.4f}" for score in result[1:4])
        lines.append(f"| {_escape(result.name)} | {scores} | {result.images:,} |")
    if len(results) > MAX_CLASS_ROWS:
        lines += ["", f"The {MAX_CLASS_ROWS} worst of {len(results)} classes."]
    wrong = counts - torch.diag(counts.diag())
    most = wrong.flatten().topk(min(MAX_PAIR_ROWS, wrong.numel()))
    names = [_escape(name) for name in class_names]
    pairs = [
        f"| {names[pair // len(counts)]} | {names[pair % len(counts)]} | {count:,} |"
        for count, pair in zip(most.values.tolist(), most.indices.tolist(), strict=True)
        if count
    ]
    if pairs:
        lines += ["", "Most frequent mistakes:", "", "| true class | prediction | images |"]
        lines += ["| --- | --- | ---: |", *pairs]
    return "\n".join(lines)


def _escape(name: str) -> str:
    """Return a class name with Markdown's special characters escaped."""
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]()#+!|<>~" else letter for letter in str(name))
