"""What is measured in training, validation and test."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from project.modules.losses import TotalWeight

MOST_BATCHES = 64
MOST_LOGITS = 2**22
"""Of the batches that are held back; beyond that they are summed up."""


class LossAndAccuracy(Metric):
    """Mean loss and accuracy over images, summed on the device of the batches and read once per interval.

    Batches are only held back when they come, and summed up many at a time: a few operations instead of a few
    for each batch. Nothing waits for the device before `read`. Which batches are summed together depends on
    their number and shape alone. Under DDP `read` sums over all ranks: every image counts exactly once.

    With class weights the loss is Σ wℓ / Σ w over all images, not a mean of the batches' quotients.

    Args:
        total_weight: returns Σ w of the targets of n batches (n, B) or (n, B, K), by which the loss divides
            its sum over each batch (n,); None divides by the number of images.
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
        self._held: list[tuple[Tensor, Tensor, Tensor]] = []
        # Loss, weight and right answers of the batches before those.
        self._restored: list[tuple[Tensor, Tensor, Tensor]] = []
        self._shapes: tuple[torch.Size, ...] = ()
        self._most = 0
        self._summed = False

    @property
    def empty(self) -> bool:
        """Whether there was no batch since the last reset."""
        return not self._held and not self._restored and not self._summed

    def append(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Hold a batch back.

        Args:
            loss: its mean, a scalar (with class weights, its weighted mean).
            logits: (B, K); they must keep their values until they are summed up.
            targets: class indices (B,), or probabilities (B, K), of which the largest counts as the class.
        """
        shapes = logits.shape, targets.shape
        if shapes != self._shapes or self._batches >= self._most:
            self._sum_up()
            self._shapes = shapes
            self._most = _most_of(logits.numel())
        self._held.append((loss.detach(), logits.detach(), targets))

    def update(self, losses: Tensor, weights: Tensor, correct: Tensor, batch_size: int) -> None:
        """Add batches of equal size.

        Args:
            losses: mean loss of each batch (n,).
            weights: by which each was divided (n,).
            correct: right answers in each batch (n,), long.
            batch_size: images of each.
        """
        # Where weights are of half precision Lightning makes these sums so too; they would soon stand still.
        self.loss = self.loss.float() + _weighted_sum(losses, weights)
        self.weight = self.weight.float() + weights.sum()
        self.correct += correct.sum()
        self.images += len(losses) * batch_size
        self._summed = True

    def compute(self) -> Tensor:
        """Return the sums (4,) of losses, of right answers, of images and of their weights, of this rank."""
        return self._sums()

    def _sums(self) -> Tensor:
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        sums = (self.loss, self.correct, self.images, self.weight)
        return torch.stack([value.to(exact) for value in sums])

    def read(self) -> dict[str, float]:
        """Return `loss` and `acc`, means over the images of all ranks since the last reading, `images`, their
        number, and `weight`, by which the loss was divided; begin anew.
        """
        self._sum_up()
        sums = self._sums()
        self.reset()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        loss, correct, images, weight = sums.tolist()
        mean = loss / weight if weight else math.nan
        return {"loss": mean, "acc": correct / images, "images": images, "weight": weight}

    def reset(self) -> None:
        """Forget all batches."""
        self._held.clear()
        self._restored.clear()
        self._summed = False
        super().reset()

    def export(self) -> dict[str, Any]:
        """What was not read yet, on all ranks, for a checkpoint; under DDP all ranks must call this.

        Returns:
            `sums` (ranks, 4) as `compute` gives them; `losses`, `weights` and `correct` (ranks, n) of the n
            batches that are held back, and the shapes of one's logits and targets.
        """
        none = torch.zeros(0, device=self.device)
        losses, weights, correct = self._held_batches() if self._batches else (none, none, none.long())
        return {
            "sums": _of_all_ranks(self._sums()),
            "losses": _of_all_ranks(losses),
            "weights": _of_all_ranks(weights),
            "correct": _of_all_ranks(correct),
            "shapes": [list(shape) for shape in self._shapes],
        }

    def restore(self, exported: Mapping[str, Any], rank: int, world_size: int) -> None:
        """Go on from what `export` returned. With another number of ranks the sums are the same only in all.

        Args:
            exported: by `export`.
            rank: of this process.
            world_size: number of processes.
        """
        self.reset()
        self._shapes = tuple(torch.Size(shape) for shape in exported["shapes"])
        size = self._shapes[1][0] if self._shapes else 0
        parts = {"weights": torch.full_like(exported["losses"], size), **exported}
        names = ("sums", "losses", "weights", "correct")
        sums, losses, weights, correct = (parts[name].to(self.device) for name in names)
        if sums.shape[1] == 3:  # of a checkpoint without weights: each image counts as 1
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
        self._summed = bool(images)
        self._restored = list(zip(losses[rank], weights[rank], correct[rank], strict=True))
        if self._shapes:
            self._most = _most_of(self._shapes[0].numel())

    @property
    def _batches(self) -> int:
        return len(self._restored) + len(self._held)

    def _held_batches(self) -> tuple[Tensor, Tensor, Tensor]:
        """Losses, weights and right answers (n,) of the n batches that are held back, n > 0."""
        parts = [tuple(map(torch.stack, zip(*self._restored, strict=True)))] if self._restored else []
        if self._held:
            losses, logits, targets = map(torch.stack, zip(*self._held, strict=True))
            answers = logits.argmax(dim=2)  # n, B
            labels = targets if targets.ndim == 2 else targets.argmax(dim=2)
            if self.total_weight is None:
                weights = torch.full_like(losses, labels.shape[1], dtype=torch.float)
            else:
                weights = self.total_weight(targets).float()
            parts.append((losses, weights, (answers == labels).sum(dim=1)))
        losses, weights, correct = map(torch.cat, zip(*parts, strict=True))
        return losses, weights, correct

    def _sum_up(self) -> None:
        if self._batches:
            self.update(*self._held_batches(), self._shapes[1][0])
            self._held.clear()
            self._restored.clear()


def _weighted_sum(losses: Tensor, weights: Tensor) -> Tensor:
    """Sum of the mean losses of batches (n,), times their weights (n,)."""
    weighted = losses.float() * weights
    return torch.where(weights != 0, weighted, 0.0).sum()  # of a batch without weight torch's mean is NaN


def _most_of(logits: int) -> int:
    """Batches of so many logits that are held back at most."""
    return min(MOST_BATCHES, MOST_LOGITS // logits)


def _of_all_ranks(values: Tensor) -> Tensor:
    """Stack what the ranks have (N,), equally many, to (ranks, N), on the CPU."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values[None].cpu()
    gathered = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    if len(values):
        torch.distributed.all_gather(gathered, values)
    return torch.stack(gathered).cpu()
