"""What is measured in training, validation and test."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

MOST_BATCHES = 64
MOST_LOGITS = 2**22
"""Of the batches that are held back; beyond that they are summed up."""


class LossAndAccuracy(Metric):
    """Mean loss and accuracy over images, summed where the batches lie and read once an interval.

    Batches are only held back when they come, and summed up many at a time: a few operations instead of a few
    for each batch. Nothing waits for the device before `read`. Which batches are summed together depends on
    their number and shape alone. Under DDP `read` sums over all ranks: every image counts exactly once.
    """

    full_state_update = False
    loss: Tensor
    correct: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)
        self.add_state("loss", torch.zeros(()))
        self.add_state("correct", torch.zeros((), dtype=torch.long))
        self.add_state("images", torch.zeros((), dtype=torch.long))
        self._held: list[tuple[Tensor, Tensor, Tensor]] = []
        self._restored: list[tuple[Tensor, Tensor]] = []  # loss and right answers of batches before those
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

    def update(self, losses: Tensor, correct: Tensor, batch_size: int) -> None:
        """Add batches of equal size.

        Args:
            losses: mean loss of each batch (n,).
            correct: right answers in each batch (n,), long.
            batch_size: images of each.
        """
        # Where weights are of half precision Lightning makes this sum so too; it would soon stand still.
        self.loss = self.loss.float() + losses.sum(dtype=torch.float) * batch_size
        self.correct += correct.sum()
        self.images += len(losses) * batch_size
        self._summed = True

    def compute(self) -> Tensor:
        """Return the sums (3,) of losses, of right answers and of images, of this rank."""
        return self._sums()

    def _sums(self) -> Tensor:
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.stack([self.loss.to(exact), self.correct.to(exact), self.images.to(exact)])

    def read(self) -> dict[str, float]:
        """Return `loss` and `acc`, means over the images of all ranks since the last reading, and `images`,
        their number; begin anew.
        """
        self._sum_up()
        sums = self._sums()
        self.reset()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        loss, correct, images = sums.tolist()
        return {"loss": loss / images, "acc": correct / images, "images": images}

    def reset(self) -> None:
        """Forget all batches."""
        self._held.clear()
        self._restored.clear()
        self._summed = False
        super().reset()

    def export(self) -> dict[str, Any]:
        """What was not read yet, on all ranks, for a checkpoint; under DDP all ranks must call this.

        Returns:
            `sums` (ranks, 3) as `compute` gives them; `losses` and `correct` (ranks, n) of the n batches that
            are held back, and the shapes of one's logits and targets.
        """
        none = torch.zeros(0, device=self.device)
        losses, correct = self._losses_and_answers() if self._batches else (none, none.long())
        return {
            "sums": _of_all_ranks(self._sums()),
            "losses": _of_all_ranks(losses),
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
        parts = {name: exported[name].to(self.device) for name in ("sums", "losses", "correct")}
        sums, losses, correct = parts["sums"], parts["losses"], parts["correct"]
        if len(sums) != world_size:
            if rank or not len(sums):
                return
            size = self._shapes[1][0] if self._shapes else 0
            held = [losses.sum(dtype=sums.dtype) * size, correct.sum(), losses.numel() * size]
            sums = (sums.sum(0) + torch.stack([torch.as_tensor(value).to(sums) for value in held]))[None]
            losses, correct = losses[:1, :0], correct[:1, :0]
        loss, right, images = sums[rank]
        self.loss, self.correct, self.images = loss.float(), right.long(), images.long()
        self._summed = bool(images)
        self._restored = list(zip(losses[rank], correct[rank], strict=True))
        if self._shapes:
            self._most = _most_of(self._shapes[0].numel())

    @property
    def _batches(self) -> int:
        return len(self._restored) + len(self._held)

    def _losses_and_answers(self) -> tuple[Tensor, Tensor]:
        """Losses and right answers (n,) of the batches that are held back; there is at least one."""
        losses = [loss for loss, _ in self._restored] + [loss for loss, _, _ in self._held]
        right = [correct for _, correct in self._restored]
        if self._held:
            _, logits, targets = zip(*self._held, strict=True)
            answers, labels = torch.stack(logits).argmax(dim=2), torch.stack(targets)  # n, B
            labels = labels if labels.ndim == 2 else labels.argmax(dim=2)
            right += (answers == labels).sum(dim=1)
        return torch.stack(losses), torch.stack(right)

    def _sum_up(self) -> None:
        if self._batches:
            self.update(*self._losses_and_answers(), self._shapes[1][0])
            self._held.clear()
            self._restored.clear()


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
