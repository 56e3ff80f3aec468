"""Metrics of training and evaluation, and the one way by which they reach loggers and callbacks."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric

from project.modules.losses import TotalWeight

MAX_HELD_BATCHES = 64
MAX_HELD_LOGITS = 2**22
"""Limit of the batches that are held back; beyond it they are summed."""


def log_metrics(
    module: L.LightningModule, curves: Mapping[str, float], results: Mapping[str, float] | None = None
) -> None:
    """Hand metrics to loggers and callbacks: every metric of a run passes here.

    Not by `LightningModule.log` alone: its interval ignores an epoch's last batch, it writes validation one
    step early, and a call takes milliseconds.

    Args:
        module: attached to the trainer.
        curves: values for the loggers, at the number of optimizer steps taken.
        results: values for `trainer.callback_metrics`, which callbacks monitor.
    """
    trainer = module.trainer
    if curves:
        for logger in trainer.loggers:
            logger.log_metrics({**curves, "epoch": trainer.current_epoch}, step=trainer.global_step)
    if results and trainer.training:
        trainer.callback_metrics.update({name: torch.as_tensor(value) for name, value in results.items()})
    elif results:
        module.log_dict(dict(results), logger=False)  # `trainer.test` returns these too


class LossAndAccuracy(Metric):
    """Mean loss and accuracy over images, summed on the device of the batches.

    Batches are held back and summed many at a time: a few operations instead of a few per batch. Nothing
    waits for the device before `read`. The grouping depends on the number and shape of batches alone. Under
    DDP `read` sums over all ranks: every image counts exactly once.

    With class weights the loss is Σ wℓ / Σ w over all images, not a mean of the batches' quotients.

    Args:
        total_weight: maps the targets of n batches, (n, B) or (n, B, K), to Σ w (n,), the divisor of each
            batch's loss; None divides by the number of images.
    """

    full_state_update = False
    loss: Tensor
    correct: Tensor
    images: Tensor
    weight: Tensor

    def __init__(self, total_weight: TotalWeight | None = None) -> None:
        super().__init__(sync_on_compute=False)
        self.total_weight = total_weight
        self.add_state("loss", torch.zeros(()))
        self.add_state("correct", torch.zeros((), dtype=torch.long))
        self.add_state("images", torch.zeros((), dtype=torch.long))
        self.add_state("weight", torch.zeros(()))
        self.num_images = 0  # on this rank since the last reading, without those held back
        self._held: list[tuple[Tensor, Tensor, Tensor]] = []
        # Loss, weight and correct predictions of a checkpoint's batches, which come before those.
        self._restored: list[tuple[Tensor, Tensor, Tensor]] = []
        self._shapes: tuple[torch.Size, ...] = ()
        self._max_batches = 0

    @property
    def num_pending_images(self) -> int:
        """Number of this rank's images since the last reading; asking does not wait for the device."""
        return self.num_images + (self._num_batches * self._shapes[1][0] if self._shapes else 0)

    @property
    def empty(self) -> bool:
        """Return True if no batch came since the last reading."""
        return not self._num_batches and not self.num_images

    def append(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Hold a batch back: its mean loss, logits (B, K), and targets (B,) or (B, K).

        The logits must keep their values until they are summed.
        """
        shapes = logits.shape, targets.shape
        if shapes != self._shapes or self._num_batches >= self._max_batches:
            self._sum_held()
            self._shapes = shapes
            self._max_batches = _max_held_batches(logits.numel())
        self._held.append((loss.detach(), logits.detach(), targets))

    def update(self, losses: Tensor, weights: Tensor, correct: Tensor, batch_size: int) -> None:
        """Add n batches of equal size: mean losses, their divisors and correct predictions, each (n,)."""
        # Half precision, to which Lightning converts these sums too, would soon stop growing.
        self.loss = self.loss.float() + _weighted_sum(losses, weights)
        self.weight = self.weight.float() + weights.sum()
        self.correct += correct.sum()
        self.images += len(losses) * batch_size
        self.num_images += len(losses) * batch_size

    def compute(self) -> Tensor:
        return self._sums()

    def _sums(self) -> Tensor:
        """Return this rank's sums (4,) of losses, correct predictions, images and weights."""
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.stack([value.to(exact) for value in (self.loss, self.correct, self.images, self.weight)])

    def read(self) -> dict[str, float]:
        """Return the means since the last reading, over the images of all ranks, and start again.

        Returns:
            `loss` and `acc`, `images`, the number of images, and `weight`, the divisor of the loss.
        """
        self._sum_held()
        sums = self._sums()
        self.reset()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        loss, correct, images, weight = sums.tolist()
        mean = loss / weight if weight else math.nan
        return {"loss": mean, "acc": correct / images, "images": images, "weight": weight}

    def reset(self) -> None:
        self._held.clear()
        self._restored.clear()
        self.num_images = 0
        super().reset()

    def export(self) -> dict[str, Any]:
        """Return what was not read yet, of all ranks, for a checkpoint; all ranks must call this."""
        none = torch.zeros(0, device=self.device)
        losses, weights, correct = self._held_batches() if self._num_batches else (none, none, none.long())
        return {
            "sums": _gather(self._sums()),
            "losses": _gather(losses),
            "weights": _gather(weights),
            "correct": _gather(correct),
            "shapes": [list(shape) for shape in self._shapes],
        }

    def restore(self, exported: Mapping[str, Any], rank: int, world_size: int) -> None:
        """Continue from a result of `export`; with another number of ranks rank 0 takes the sums of all."""
        self.reset()
        self._shapes = tuple(torch.Size(shape) for shape in exported["shapes"])
        size = self._shapes[1][0] if self._shapes else 0
        parts = {"weights": torch.full_like(exported["losses"], size), **exported}
        names = ("sums", "losses", "weights", "correct")
        sums, losses, weights, correct = (parts[name].to(self.device) for name in names)
        if sums.shape[1] == 3:  # a checkpoint without weights: each image counts as 1
            sums = torch.cat([sums, sums[:, 2:]], dim=1)
        if len(sums) != world_size:
            if rank or not len(sums):
                return
            held = [_weighted_sum(losses, weights), correct.sum(), losses.numel() * size, weights.sum()]
            sums = (sums.sum(0) + torch.stack([torch.as_tensor(value).to(sums) for value in held]))[None]
            losses, weights, correct = losses[:1, :0], weights[:1, :0], correct[:1, :0]
        loss, right, images, weight = sums[rank]
        self.loss, self.weight = loss.float(), weight.float()
        self.correct, self.images = right.long(), images.long()
        self.num_images = int(images)
        self._restored = list(zip(losses[rank], weights[rank], correct[rank], strict=True))
        if self._shapes:
            self._max_batches = _max_held_batches(self._shapes[0].numel())

    @property
    def _num_batches(self) -> int:
        return len(self._restored) + len(self._held)

    def _held_batches(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses, weights and correct predictions (n,) of the n > 0 batches that are held back."""
        parts = [tuple(map(torch.stack, zip(*self._restored, strict=True)))] if self._restored else []
        if self._held:
            losses, logits, targets = map(torch.stack, zip(*self._held, strict=True))
            labels = targets if targets.ndim == 2 else targets.argmax(dim=2)
            if self.total_weight is None:
                weights = torch.full_like(losses, labels.shape[1], dtype=torch.float)
            else:
                weights = self.total_weight(targets).float()
            parts.append((losses, weights, (logits.argmax(dim=2) == labels).sum(dim=1)))
        losses, weights, correct = map(torch.cat, zip(*parts, strict=True))
        return losses, weights, correct

    def _sum_held(self) -> None:
        if self._num_batches:
            self.update(*self._held_batches(), self._shapes[1][0])
            self._held.clear()
            self._restored.clear()


def _weighted_sum(losses: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of the batches' mean losses (n,), times their weights (n,)."""
    weighted = losses.float() * weights
    return torch.where(weights != 0, weighted, 0.0).sum()  # torch's mean of a batch without weight is NaN


def _max_held_batches(num_logits: int) -> int:
    return min(MAX_HELD_BATCHES, MAX_HELD_LOGITS // num_logits)


def _gather(values: Tensor) -> Tensor:
    """Stack the ranks' values (N,), equally many, to (ranks, N), on the CPU."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values[None].cpu()
    gathered = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    if len(values):
        torch.distributed.all_gather(gathered, values)
    return torch.stack(gathered).cpu()


def confusion_counts(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Count N images by true class (row) and predicted class (column): (K, K), long."""
    pairs = torch.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return pairs.view(num_classes, num_classes)


class ClassScores(NamedTuple):
    """Precision, recall and F1 of K classes, each shaped as the counts of `class_scores`."""

    precision: Tensor
    recall: Tensor
    f1: Tensor

    def macro(self) -> "ClassScores":
        """Return the means over the classes, the first dimension, without those that are NaN."""
        return ClassScores(*(score.nanmean(0) for score in self))


def class_scores(correct: Tensor, images: Tensor, predicted: Tensor) -> ClassScores:
    """Compute precision, recall and F1 (van Rijsbergen 1979, Information Retrieval, ch. 7).

    Equal to scikit-learn's `precision_recall_fscore_support` with `labels=None, zero_division=0`. Precision
    of a class that is never predicted is 0, and so is recall of a class that is predicted and has no images.
    All three are NaN for a class with neither, which scikit-learn leaves out. torchmetrics has 0 there, and
    takes no fractional counts, as of resampled images.

    Args:
        correct: correctly predicted images of each class (K, …), floats.
        images: images of each class (K, …).
        predicted: images that were predicted to be of each class (K, …).
    """
    present = images + predicted > 0

    def ratio(total: Tensor) -> Tensor:
        return torch.where(present & (total == 0), 0.0, correct / total)

    return ClassScores(ratio(predicted), ratio(images), f1=2 * correct / (images + predicted))  # 0 / 0 is NaN
