"""The loader: ready batches, normalized and augmented whole, on the device."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from project.datamodules.augmentation import Augmentation
from project.datamodules.images import Images
from project.datamodules.order import Order, TrainingOrder
from project.datamodules.randomness import generator


class ImageLoader:
    """Batches of one split for the trainer.

    Args:
        images: all images of the set.
        rows: row numbers (N',) of this split.
        order: yields the batches of an epoch as positions in `rows`.
        mean: of each channel, on the scale [0, 1].
        std: of each channel, on the scale [0, 1].
        device: where batches are wanted.
        augmentation: applied to normalized batches, or None for evaluation.
        seed: with the epoch, the batch's number and the rank, decides what the augmentation draws.
    """

    def __init__(
        self,
        images: Images,
        rows: Tensor,
        order: Order,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        self.images = images
        self.rows = rows
        self.order = order
        self.device = device
        self.augmentation = augmentation if augmentation is not None and augmentation.active else None
        self.seed = seed
        self.rank = rank
        self.shift = 255 * torch.tensor(mean, device=device).view(-1, 1, 1)  # C, 1, 1
        self.scale = 1 / (255 * torch.tensor(std, device=device).view(-1, 1, 1))

    batch_sampler = None  # Lightning asks loaders that have a sampler

    @property
    def sampler(self) -> Order:
        """What Lightning tells the epoch to."""
        return self.order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, C, H, W) float and targets: (B,) long, or (B, K) float if they were mixed."""
        epoch, start = self.order.epoch, self.order.start
        flipped = self._flipped(epoch)
        batches = self.images.batches(self.order, self.rows, self.device)
        for number, (pixels, labels) in enumerate(batches, start):
            images = pixels.float().sub_(self.shift).mul_(self.scale)
            if self.augmentation is None:
                yield images, labels
            else:
                draws = generator(self.seed, epoch, number, self.rank, device=self.device)
                yield self.augmentation(images, labels, draws, flipped[number] if flipped else None)

    def _flipped(self, epoch: int) -> list[Tensor] | None:
        """For each batch of an epoch, which images (B,) to flip, if the augmentation says so by epoch."""
        if self.augmentation is None or not isinstance(self.order, TrainingOrder):
            return None
        flipped = self.augmentation.flipped(len(self.images.labels), self.seed, epoch)
        if flipped is None:
            return None
        batches = self.order.batches(epoch)
        chosen = flipped[self.rows[torch.cat(batches)]].to(self.device)  # one transfer an epoch
        return list(chosen.split([len(batch) for batch in batches]))
