"""Order of an epoch: the images of each batch on each rank."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from project.errors import InputError
from project.runtime.seeding import generator


class Order(ABC):
    """Order of the images of an epoch, from batch `start` on."""

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
    """Batches of a shuffled epoch, a function of the seed and the epoch alone.

    Under DDP every rank takes its share of each global batch of `batch_size` images, so the steps are those
    of one device. An epoch leaves out fewer than `world_size` images where the last batch does not divide
    evenly. It also leaves out a last batch of one image per rank, which has no statistics for batch norm.
    `repeat_first` repeats the batches of epoch 0 in every epoch.

    Raises:
        InputError: the batch size is no multiple of `world_size`, or there are fewer images than ranks.
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
                f"data.batch_size={batch_size}: counts the images of all devices together and must be "
                f"a multiple of their number, {world_size}"
            )
        if size < world_size:
            raise InputError(f"data: {size} training images cannot be shared by {world_size} devices")
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
        """Choose the epoch. Lightning calls this at the start of each."""
        epoch, self.start = self._resume_at or (epoch, 0)
        self.epoch = 0 if self.repeat_first else epoch

    def resume_at(self, epoch: int, start: int) -> None:
        """Begin with batch `start` of an epoch, whichever epoch Lightning sets next."""
        self._resume_at = (epoch, start)
        self.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def draw(self) -> tuple[Tensor, list[int]]:
        start, self.start, self._resume_at = self.start, 0, None
        return self.indices(self.epoch, start)

    def indices(self, epoch: int, start: int = 0) -> tuple[Tensor, list[int]]:
        """Return the same as `draw`, for an epoch from batch `start` on."""
        order = torch.randperm(self.total, generator=generator(self.seed, epoch))[: self.size]
        # Batches are multiples of `world_size`: a stride over the epoch is one over each of them.
        indices = order[start * self.batch_size :][self.rank :: self.world_size]
        batch = self.batch_size // self.world_size
        full, rest = divmod(len(indices), batch)
        return indices, [batch] * full + [rest] * (rest > 0)


class EvaluationOrder(Order):
    """Every image exactly once, in batches of nearly equal size, as many on each rank.

    Some networks exchange buffers in every forward pass under DDP: a rank with fewer batches would leave the
    others waiting. A batch has at most `batch_size` images on one rank, or one more for that reason.

    Raises:
        InputError: there are fewer images than ranks.
    """

    def __init__(self, size: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        if size < world_size:
            raise InputError(f"data: {size} images cannot be shared by {world_size} devices for evaluation")
        self.shard = torch.arange(rank, size, world_size)
        largest, smallest = -(-size // world_size), size // world_size
        self.num_batches = min(-(-largest // batch_size), smallest)

    def __len__(self) -> int:
        return self.num_batches

    def draw(self) -> tuple[Tensor, list[int]]:
        size, larger = divmod(len(self.shard), self.num_batches)
        return self.shard, [size + 1] * larger + [size] * (self.num_batches - larger)
