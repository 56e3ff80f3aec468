"""The loader: ready batches, normalized and augmented whole, on the device."""

from collections.abc import Iterator, Sequence
from itertools import repeat

import torch
from torch import Tensor

from project.datamodules.loading.augmentation import Augmentation
from project.datamodules.loading.batch_order import Order, TrainingOrder
from project.datamodules.loading.images import Images
from project.runtime.seeding import batch_generators


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
        # For rows as they lie in memory: an operation on one vector of all pixels runs at full speed.
        self._row_shift = images.to_rows(self.shift.expand(1, *images.shape))[0]  # C * H * W
        self._row_scale = images.to_rows(self.scale.expand(1, *images.shape))[0]

    batch_sampler = None  # Lightning asks loaders that have a sampler

    @property
    def sampler(self) -> Order:
        """What Lightning tells the epoch to."""
        return self.order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, C, H, W) float and targets: (B,) long, or (B, K) float if they were mixed."""
        batches = self._normalized()
        if self.augmentation is None:
            yield from batches
            return
        epoch, start = self.order.epoch, self.order.start
        generators = batch_generators(self.seed, epoch, start, self.rank, device=self.device)
        flips = self._flips(epoch, start)
        for (images, labels), draws, flipped in zip(batches, generators, flips, strict=False):
            yield self.augmentation(images, labels, draws, flipped)

    def _normalized(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalized images (B, C, H, W) and labels (B,), computed for a group of batches at once."""
        for rows, labels, sizes in self.images.groups(self.order, self.rows, self.device):
            images = self.images.from_rows(rows.float().sub_(self._row_shift).mul_(self._row_scale))
            yield from zip(images.split(sizes), labels.split(sizes), strict=True)

    def _flips(self, epoch: int, start: int) -> Iterator[Tensor | None]:
        """Which images (B,) of each batch as of `start` to flip, where the augmentation tells by epoch."""
        if self.augmentation is None or not isinstance(self.order, TrainingOrder):
            return repeat(None)
        flipped = self.augmentation.flipped(len(self.images.labels), self.seed, epoch)
        if flipped is None:
            return repeat(None)
        indices, sizes = self.order.indices(epoch, start)
        chosen = flipped[self.rows[indices]].to(self.device)  # one transfer an epoch
        return iter(chosen.split(sizes))
