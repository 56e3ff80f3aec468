"""What is measured in training, validation and test."""

import torch
from torch import Tensor
from torchmetrics import Metric


class LossAndAccuracy(Metric):
    """Mean loss and accuracy over images, summed where the batch lies and read once an interval.

    One small metric instead of a collection: an update costs a few additions on the device and never
    waits for it. Under DDP `compute` sums over all ranks, so that every image counts exactly once.
    """

    full_state_update = False
    loss: Tensor
    correct: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("loss", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("correct", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            loss: its mean, a scalar (with class weights, its weighted mean).
            logits: (B, K).
            targets: class indices (B,), or probabilities (B, K), of which the largest counts as the class.
        """
        labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
        self.loss += loss * len(labels)
        self.correct += (logits.argmax(dim=1) == labels).sum()
        self.images += len(labels)

    def compute(self) -> dict[str, Tensor]:
        """Return `loss` and `acc`, means over the images seen since the last reset, and their number."""
        return {"loss": self.loss / self.images, "acc": self.correct / self.images, "images": self.images}
