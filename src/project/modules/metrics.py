"""What is measured in training, validation and test."""

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
        self._shapes: tuple[torch.Size, ...] = ()
        self._most = 0

    @property
    def empty(self) -> bool:
        """Whether there was no batch since the last reset."""
        return not self._held and not self.update_called

    def append(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Hold a batch back.

        Args:
            loss: its mean, a scalar (with class weights, its weighted mean).
            logits: (B, K); they must keep their values until they are summed up.
            targets: class indices (B,), or probabilities (B, K), of which the largest counts as the class.
        """
        shapes = logits.shape, targets.shape
        if shapes != self._shapes or len(self._held) >= self._most:
            self._sum_up()
            self._shapes = shapes
            self._most = min(MOST_BATCHES, MOST_LOGITS // logits.numel())
        self._held.append((loss.detach(), logits.detach(), targets))

    def update(self, losses: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add batches of equal size.

        Args:
            losses: mean loss of each batch (n,).
            logits: (n, B, K).
            targets: (n, B), or probabilities (n, B, K).
        """
        labels = targets if targets.ndim == 2 else targets.argmax(dim=2)
        # Where weights are of half precision Lightning makes this sum so too; it would soon stand still.
        self.loss = self.loss.float() + losses.sum(dtype=torch.float) * labels.shape[1]
        self.correct += (logits.argmax(dim=2) == labels).sum()
        self.images += labels.numel()

    def compute(self) -> Tensor:
        """Return the sums (3,) of losses, of right answers and of images, of this rank."""
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.stack([self.loss.to(exact), self.correct.to(exact), self.images.to(exact)])

    def read(self) -> dict[str, float]:
        """Return `loss` and `acc`, means over the images of all ranks since the last reading, and `images`,
        their number; begin anew.
        """
        self._sum_up()
        sums = self.compute()
        self.reset()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        loss, correct, images = sums.tolist()
        return {"loss": loss / images, "acc": correct / images, "images": images}

    def reset(self) -> None:
        """Forget all batches."""
        self._held.clear()
        super().reset()

    def _sum_up(self) -> None:
        if self._held:
            losses, logits, targets = zip(*self._held, strict=True)
            self._held.clear()
            self.update(torch.stack(losses), torch.stack(logits), torch.stack(targets))
