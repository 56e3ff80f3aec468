"""Batch order: indices of the images in each batch of an epoch, per rank."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from project.errors import InputError
from project.runtime.seeding import generator


class Order(ABC):
    """Batches of one epoch on one rank, starting with batch number `start`."""

    epoch = 0
    start = 0

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches of an epoch."""

    @abstractmethod
    def draw(self) -> tuple[Tensor, list[int]]:
        """Return the indices of this rank's batches, concatenated, and their sizes."""

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the indices (B,) of each batch of this rank."""
        indices, sizes = self.draw()
        yield from indices.split(sizes)


class TrainingOrder(Order):
    """Shuffled batches of an epoch, determined by the seed and the epoch number.

    Under DDP each rank takes an equal share of every global batch, so training steps equal those of a single
    device. If the last batch does not divide evenly among the ranks, up to `world_size` - 1 images are
    dropped from the epoch. A last batch of one image per rank is also dropped: batch norm needs two.

    Args:
        size: number of training images.
        batch_size: images per global batch, summed over all ranks.
        seed: seed of the run.
        rank: rank of this process (default 0).
        world_size: number of ranks (default 1).
        repeat_first: repeat the batches of epoch 0 in every epoch, for `overfit_batches` (default False).

    Raises:
        InputError: `batch_size` is not a multiple of `world_size`, or there are fewer images than ranks.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        repeat_first: bool = False,
    ) -> None:
        if batch_size % world_size:
            raise InputError(
                f"data.batch_size={batch_size}: counts the images of all devices and must be a multiple "
                f"of the number of devices, {world_size}"
            )
        if size < world_size:
            raise InputError(f"data: {size} training images cannot be distributed over {world_size} devices")
        self.size = size - size % world_size
        if self.size > batch_size and self.size % batch_size == world_size:
            self.size -= world_size
        self.total = size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.repeat_first = repeat_first
        self._resume_at: tuple[int, int] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch. Lightning calls this method at the start of each epoch."""
        epoch, self.start = self._resume_at or (epoch, 0)
        self.epoch = 0 if self.repeat_first else epoch

    def resume_at(self, epoch: int, start: int) -> None:
        """Start the next iteration at batch `start` of an epoch; overrides the next `set_epoch`."""
        self._resume_at = (epoch, start)
        self.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def draw(self) -> tuple[Tensor, list[int]]:
        start, self.start, self._resume_at = self.start, 0, None
        return self.indices(self.epoch, start)

    def indices(self, epoch: int, start: int = 0) -> tuple[Tensor, list[int]]:
        """Return the same as `draw` for any epoch, from batch `start` on, without changing the state."""
        order = self._epoch_order(generator(self.seed, epoch))[: self.size]
        # Batch sizes are multiples of `world_size`: a stride over the epoch is a stride over each batch.
        indices = order[start * self.batch_size :][self.rank :: self.world_size]
        batch = self.batch_size // self.world_size
        full, rest = divmod(len(indices), batch)
        return indices, [batch] * full + [rest] * (rest > 0)

    def _epoch_order(self, draws: torch.Generator) -> Tensor:
        """Return the indices (N,) of all ranks in an epoch."""
        return torch.randperm(self.total, generator=draws)


class BalancedOrder(TrainingOrder):
    """Batches drawn with replacement: each draw takes a random class, then a random input of that class.

    The probability of input i of class y is 1 / (K n_y), as with `torch.utils.data.WeightedRandomSampler` and
    weights 1 / n_y. An epoch has as many draws as there are inputs; each rank takes other draws.

    Args:
        labels: class indices (N,) of the training inputs.
        batch_size: see `TrainingOrder`.
        options: see `TrainingOrder`.
    """

    def __init__(self, labels: Tensor, batch_size: int, **options: Any) -> None:
        super().__init__(len(labels), batch_size, **options)
        self._by_class = labels.argsort(stable=True)  # N, indices sorted by class
        counts = labels.bincount()
        self._counts = counts[counts > 0]  # of classes with inputs
        self._firsts = self._counts.cumsum(0) - self._counts  # of each class in `_by_class`

    def _epoch_order(self, draws: torch.Generator) -> Tensor:
        classes = torch.randint(len(self._counts), (self.total,), generator=draws)
        shares = torch.rand(self.total, generator=draws, dtype=torch.float64)
        counts = self._counts[classes]
        places = (shares * counts).long().clamp(max=counts - 1)
        return self._by_class[self._firsts[classes] + places]


class EvaluationOrder(Order):
    """Unshuffled batches of nearly equal size, each image exactly once, equally many batches per rank.

    Equal numbers of batches prevent a deadlock: under DDP some networks synchronize buffers in every forward
    pass. A batch may therefore exceed `batch_size` by one image.

    Args:
        size: number of images.
        batch_size: images per batch on one rank.
        rank: rank of this process (default 0).
        world_size: number of ranks (default 1).

    Raises:
        InputError: there are fewer images than ranks.
    """

    def __init__(self, size: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        if size < world_size:
            raise InputError(
                f"data: {size} images cannot be distributed over {world_size} devices for evaluation"
            )
        self.shard = torch.arange(rank, size, world_size)
        largest, smallest = -(-size // world_size), size // world_size
        self.num_batches = min(-(-largest // batch_size), smallest)

    def __len__(self) -> int:
        return self.num_batches

    def draw(self) -> tuple[Tensor, list[int]]:
        size, larger = divmod(len(self.shard), self.num_batches)
        return self.shard, [size + 1] * larger + [size] * (self.num_batches - larger)
