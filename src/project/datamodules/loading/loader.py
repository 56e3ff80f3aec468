"""The loader: batches made, normalized and augmented on the device."""

from collections.abc import Iterator, Sequence
from itertools import repeat

import torch
from torch import Tensor

from project.datamodules.loading.augmentation import Augmentation
from project.datamodules.loading.batch_order import Order, TrainingOrder
from project.datamodules.loading.images import Images
from project.runtime.seeding import batch_generators


def normalization(
    mean: Sequence[float], std: Sequence[float], device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Return shift and scale (C, 1, 1), so that `(pixels - shift) * scale` is normalized.

    Args:
        mean: mean of each channel in [0, 1]; pixels go from 0 to 255.
        std: standard deviation of each channel in [0, 1].
        device: of the result (CPU).
    """
    shift = 255 * torch.tensor(mean, device=device).view(-1, 1, 1)
    return shift, 1 / (255 * torch.tensor(std, device=device).view(-1, 1, 1))


class ImageLoader:
    """Batches of one split for the trainer.

    Args:
        images: of the data set.
        rows: (N',) row numbers of the split.
        order: yields the batches of an epoch as positions in `rows`.
        mean: mean of each channel, on the scale [0, 1].
        std: standard deviation of each channel.
        device: of the batches.
        augmentation: of normalized batches; its draws follow from seed, epoch, batch and rank.
    """

    batch_sampler = None  # Lightning asks loaders that have a sampler

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
        self.order = self.sampler = order  # Lightning sets the sampler's epoch
        self.device = device
        self.augmentation = augmentation if augmentation is not None and augmentation.is_active else None
        self.seed = seed
        self.rank = rank
        self._groups = images.groups(order, rows, device)
        # As rows in the memory order of the images: an operation on one vector of pixels runs at full speed.
        shift, scale = normalization(mean, std, device)
        self._shift = images.to_rows(shift.expand(1, *images.shape))[0]  # C * H * W
        self._scale = images.to_rows(scale.expand(1, *images.shape))[0]

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, C, H, W) float and targets: (B,) long, or (B, K) float if they are mixed."""
        if self.augmentation is None:
            yield from self._normalized()
            return
        epoch, start = self.order.epoch, self.order.start
        generators = batch_generators(self.seed, epoch, start, self.rank, device=self.device)
        flips = self._flips(self.augmentation, epoch, start)
        for (images, labels), draws, flipped in zip(self._normalized(), generators, flips, strict=False):
            yield self.augmentation(images, labels, draws, flipped)

    def _normalized(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalized images (B, C, H, W) and labels (B,), computed for a group of batches at once."""
        for rows, labels, sizes in self._groups():
            images = self.images.from_rows(rows.float().sub_(self._shift).mul_(self._scale))
            yield from zip(images.split(sizes), labels.split(sizes), strict=True)

    def _flips(self, augmentation: Augmentation, epoch: int, start: int) -> Iterator[Tensor | None]:
        """Yield which images (B,) of each batch to flip; None where each batch draws them."""
        flipped = augmentation.flips_of_epoch(len(self.images.labels), self.seed, epoch)
        if flipped is None or not isinstance(self.order, TrainingOrder):
            return repeat(None)
        indices, sizes = self.order.indices(epoch, start)
        chosen = flipped[self.rows[indices]].to(self.device)  # one transfer an epoch
        return iter(chosen.split(sizes))
