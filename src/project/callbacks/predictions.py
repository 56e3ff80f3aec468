"""What a classifier answered to each image of the test."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from project.modules.class_scores import class_scores, confusion


class Answers(NamedTuple):
    """Answers to n images, one entry each, on the CPU.

    Args:
        places: of the images, in the order in which one device goes through the split.
        labels: the true classes.
        predictions: the classes with the largest logits.
        losses: cross-entropies.
        confidences: probabilities of the predictions, by softmax.
    """

    places: Tensor  # n, long
    labels: Tensor  # n, long
    predictions: Tensor  # n, long
    losses: Tensor  # n, float
    confidences: Tensor  # n, float

    def confusion(self, classes: int) -> Tensor:
        """Count images by true class (row) and prediction (column): (K, K) long."""
        return confusion(self.labels, self.predictions, classes)

    def worst(self, count: int) -> Tensor:
        """Positions in these answers (at most `count`) of the wrong ones, the largest loss first."""
        wrong = torch.nonzero(self.predictions != self.labels).flatten()
        order = self.losses[wrong].argsort(descending=True, stable=True)
        return wrong[order[:count]]


class Collector:
    """Collects answers batch by batch, where the logits are, without waiting for them."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def append(self, logits: Tensor, targets: Tensor) -> None:
        """Take a batch.

        Args:
            logits: (B, K).
            targets: (B,) class indices, or (B, K) probabilities, of which the largest counts.
        """
        labels = targets if targets.ndim == 1 else targets.argmax(1)
        log_shares = F.log_softmax(logits.float(), 1)
        confident, predictions = log_shares.max(1)
        losses = -log_shares.gather(1, labels[:, None])[:, 0]
        # In single precision class indices are exact up to 2^24.
        self._parts.append(torch.stack([labels.float(), predictions.float(), losses, confident.exp()]))

    def gather(self) -> Answers:
        """The answers of all ranks, which must all call this, in the order of the places; begin anew.

        Rank r of W has been given the places r, r + W, r + 2W, …
        """
        parts, self._parts = self._parts, []
        values = torch.cat(parts, 1) if parts else torch.zeros(4, 0)
        ranks = [values]
        if dist.is_available() and dist.is_initialized():
            ranks = _of_all_ranks(values)
        columns = []
        for rank, part in enumerate(ranks):
            places = rank + len(ranks) * torch.arange(part.shape[1])
            columns.append(torch.cat([places.double()[None], part.cpu().double()]))
        table = torch.cat(columns, 1)
        table = table[:, table[0].argsort()]
        places, labels, predictions = table[:3].long()
        return Answers(places, labels, predictions, *table[3:].float())


def _of_all_ranks(values: Tensor) -> list[Tensor]:
    """What each rank has (4, n), of different lengths."""
    lengths = [torch.zeros(1, dtype=torch.long, device=values.device) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, torch.tensor([values.shape[1]], device=values.device))
    most = int(max(lengths))
    padded = F.pad(values, (0, most - values.shape[1]))
    gathered = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(gathered, padded)
    return [part[:, : int(length)] for part, length in zip(gathered, lengths, strict=True)]


class ClassResult(NamedTuple):
    """Precision, recall and F1 of one class; for what is NaN and what is 0 see `class_scores`."""

    name: str
    precision: float
    recall: float
    f1: float
    images: int


def class_results(counts: Tensor, class_names: Sequence[str]) -> list[ClassResult]:
    """Precision, recall and F1 of each class, in their order.

    Args:
        counts: (K, K) by true class and prediction.
        class_names: K names.
    """
    right = counts.diag().double()
    images, predicted = counts.sum(1).double(), counts.sum(0).double()
    columns = [*class_scores(right, images, predicted), images.long()]
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [ClassResult(str(name), *row) for name, row in zip(class_names, rows, strict=True)]


MOST_ROWS = 50
MOST_PAIRS = 10


def as_markdown(counts: Tensor, class_names: Sequence[str]) -> str:
    """Accuracy, a table of the classes, the worst first, and what is confused most often.

    Args:
        counts: (K, K) by true class and prediction.
        class_names: K names.
    """
    results = class_results(counts, class_names)
    right, images = int(counts.diag().sum()), int(counts.sum())
    scored = [result.f1 for result in results if not math.isnan(result.f1)]
    f1 = sum(scored) / max(1, len(scored))
    lines = [
        f"**Test split:** {right:,} of {images:,} images right ({100 * right / max(1, images):.2f} %); "
        f"mean F1 of the classes {100 * f1:.2f} %",
        "",
        "| class | precision, % | recall, % | F1, % | images |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    # Classes without images come last.
    results = sorted(results, key=lambda result: (not result.images, math.isnan(result.f1), result.f1))
    for result in results[:MOST_ROWS]:
        shares = " | ".join(_percent(share) for share in result[1:4])
        lines.append(f"| {_plain(result.name)} | {shares} | {result.images:,} |")
    if len(results) > MOST_ROWS:
        lines += ["", f"The {MOST_ROWS} worst of {len(results)} classes."]
    names = [_plain(name) for name in class_names]
    wrong = counts - torch.diag(counts.diag())
    most = wrong.flatten().topk(min(MOST_PAIRS, wrong.numel()))
    pairs = [
        f"| {names[pair // len(counts)]} | {names[pair % len(counts)]} | {count:,} |"
        for count, pair in zip(most.values.tolist(), most.indices.tolist(), strict=True)
        if count
    ]
    if pairs:
        lines += ["", "Most frequent mistakes:", "", "| true class | prediction | images |"]
        lines += ["| --- | --- | ---: |", *pairs]
    return "\n".join(lines)


def _percent(share: float) -> str:
    return "–" if share != share else f"{100 * share:.2f}"


def _plain(name: str) -> str:
    """A class's name as Markdown, as it is written."""
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]()#+!|<>~" else letter for letter in str(name))
