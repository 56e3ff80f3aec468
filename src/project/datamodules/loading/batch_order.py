"""Which images form which batch of an epoch, on which process."""

from collections.abc import Iterator

import torch
from torch import Tensor

from project.errors import InputError
from project.runtime.seeding import generator


class TrainingOrder:
    """Batches of a shuffled epoch. The order is a function of the seed and the epoch alone.

    Under DDP every rank takes its share of each global batch, so the steps are the same as on one device.
    Where the last batch does not divide evenly, fewer than `world_size` images wait for another epoch; so
    does a last batch of one image a rank, which has no statistics for batch norm.

    Args:
        size: number of images.
        batch_size: images of one step over all ranks together.
        seed: of the run.
        rank: of this process.
        world_size: number of processes.
        same: go through the first epoch's batches in each.

    Raises:
        InputError: the batch size cannot be shared evenly, or there are too few images.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        same: bool = False,
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
        self.same = same
        self.epoch = 0
        self.start = 0
        self._resume_at: tuple[int, int] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this at the start of each."""
        epoch, self.start = self._resume_at or (epoch, 0)
        self.epoch = 0 if self.same else epoch

    def resume_at(self, epoch: int, start: int) -> None:
        """Begin with this epoch, without its first `start` batches, whatever epoch Lightning begins with."""
        self._resume_at = (epoch, start)
        self.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the indices (B,) of each batch of this rank, once without the first `start` of them."""
        indices, sizes = self.draw()
        yield from indices.split(sizes)

    def draw(self) -> tuple[Tensor, list[int]]:
        """Return the indices of what `__iter__` would yield, one batch after the other, and each one's B."""
        start, self.start, self._resume_at = self.start, 0, None
        return self.indices(self.epoch, start)

    def indices(self, epoch: int, start: int = 0) -> tuple[Tensor, list[int]]:
        """Return the indices of this rank's batches of an epoch as of batch `start`, and each one's B."""
        order = torch.randperm(self.total, generator=generator(self.seed, epoch))[: self.size]
        # Batches are multiples of `world_size`: a stride over the epoch is one over each of them.
        indices = order[start * self.batch_size :][self.rank :: self.world_size]
        batch = self.batch_size // self.world_size
        whole, rest = divmod(len(indices), batch)
        return indices, [batch] * whole + [rest] * (rest > 0)


class EvaluationOrder:
    """Every image exactly once, in batches of nearly equal size, as many on each rank.

    The batches of the ranks are equal in number because some networks exchange buffers on every forward
    pass under DDP; a rank with fewer would leave the others waiting.

    Args:
        size: number of images.
        batch_size: most images of one batch on one rank; one more where a rank would be left without.
        rank: of this process.
        world_size: number of processes.

    Raises:
        InputError: fewer images than ranks.
    """

    epoch = 0
    start = 0

    def __init__(self, size: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        if size < world_size:
            raise InputError(f"data: {size} images cannot be shared by {world_size} devices for evaluation")
        self.shard = torch.arange(rank, size, world_size)
        largest = -(-size // world_size)
        smallest = size // world_size
        self.batches = min(-(-largest // batch_size), smallest)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the indices (B,) of each batch of this rank."""
        indices, sizes = self.draw()
        yield from indices.split(sizes)

    def draw(self) -> tuple[Tensor, list[int]]:
        """Return the indices of all batches of this rank, one after the other, and the B of each."""
        smaller, larger = divmod(len(self.shard), self.batches)
        return self.shard, [smaller + 1] * larger + [smaller] * (self.batches - larger)


Order = TrainingOrder | EvaluationOrder
