"""Images in memory as one tensor, what batches are made from, and how the images are split."""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from project.datamodules.loading.batch_order import Order
from project.datamodules.loading.prefetch import ahead
from project.errors import InputError
from project.runtime.seeding import generator


class Group(NamedTuple):
    """Consecutive batches, one after the other."""

    rows: Tensor  # B1 + B2 + …, C * H * W; uint8, as the images lie in memory
    labels: Tensor  # B1 + B2 + …
    sizes: list[int]  # B1, B2, …


class Images(Protocol):
    """Labelled images that can be fetched in any order."""

    labels: Tensor  # N, long
    shape: tuple[int, int, int]  # C, H, W
    nbytes: int  # of memory that the images take
    mapped: bool  # whether that memory is a file's, shared by all processes that map it

    def groups(self, order: Order, rows: Tensor, device: torch.device) -> Iterator[Group]:
        """Yield the batches of `order` on `device`, several at a time.

        Args:
            order: draws positions in `rows`.
            rows: the images of one split, as row numbers (N',).
            device: where batches are wanted.
        """
        ...

    def sample(self, rows: Tensor) -> Tensor:
        """Return the images (B, C, H, W) uint8 of these rows, on the CPU."""
        ...

    def to_rows(self, images: Tensor) -> Tensor:
        """Flatten images (B, C, H, W) to (B, C * H * W), in the memory order of the groups."""
        ...

    def from_rows(self, rows: Tensor) -> Tensor:
        """View rows (B, C * H * W) of a group as images (B, C, H, W)."""
        ...


class Layout:
    """The order of an image's pixels in memory: by channel, row, column; or by row, column, channel.

    Args:
        shape: (C, H, W).
        channels_last: the second one. With one channel both are the same.
    """

    def __init__(self, shape: tuple[int, int, int], *, channels_last: bool) -> None:
        self.shape = shape
        self.channels_last = channels_last and shape[0] > 1

    def to_rows(self, images: Tensor) -> Tensor:
        """See `Images.to_rows`; a view where the images lie so already."""
        return (images.permute(0, 2, 3, 1) if self.channels_last else images).flatten(1)

    def from_rows(self, rows: Tensor) -> Tensor:
        """See `Images.from_rows`."""
        channels, height, width = self.shape
        if self.channels_last:
            return rows.view(-1, height, width, channels).permute(0, 3, 1, 2)
        return rows.view(-1, channels, height, width)


class MemoryImages(Layout):
    """Images in one tensor: a group of batches is one indexing operation, on the device if they fit there.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) long.
        channels_last: yield batches in that memory order; costs a copy here unless `images` has it.
        mapped: whether `images` is a mapped file.
    """

    DEVICE_SHARE = 0.25  # of a GPU's free memory that images may take
    CACHED_BYTES = 2**20
    """Most bytes of a group's normalized images on a CPU: they are gone over four times, so they must stay
    in its cache. Larger groups save nothing more.
    """
    DEVICE_BYTES = 2**24
    """The same on a GPU, where each operation of a group has to be worth its launch."""
    ALIGNMENT = 64
    """Every batch begins at a multiple of so many bytes, as if it had been allocated by itself: results of
    matrix products could depend on it in their last bits, and so on where in an epoch a run was resumed.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, *, channels_last: bool = False, mapped: bool = False
    ) -> None:
        assert images.dtype == torch.uint8
        assert images.ndim == 4
        channels, height, width = images.shape[1:]
        super().__init__((channels, height, width), channels_last=channels_last)
        self.labels = labels
        self._rows = self.to_rows(images)  # N, C * H * W
        self.nbytes = self._rows.nbytes
        self.mapped = mapped and self._rows.data_ptr() == images.data_ptr()

    @property
    def images(self) -> Tensor:
        """All images (N, C, H, W) uint8."""
        return self.from_rows(self._rows)

    def groups(self, order: Order, rows: Tensor, device: torch.device) -> Iterator[Group]:
        """See `Images.groups`."""
        self._move_near(device)
        indices, sizes = order.draw()
        chosen = rows[indices].to(self._rows.device)  # one transfer an epoch: a GPU never waits for it
        labels = self.labels[chosen].to(device)
        together = self._together(sizes, device)
        grouped = [sizes[first : first + together] for first in range(0, len(sizes), together)]
        lengths = [sum(group) for group in grouped]
        gathered = self._gather(chosen.split(lengths), device)
        yield from map(Group, gathered, labels.split(lengths), grouped)

    def sample(self, rows: Tensor) -> Tensor:
        """See `Images.sample`."""
        return self.from_rows(self._rows.index_select(0, rows.to(self._rows.device)).cpu())

    def _together(self, sizes: list[int], device: torch.device) -> int:
        """How many batches make a group."""
        image_bytes = 4 * self._rows.shape[1]
        if any(size * image_bytes % self.ALIGNMENT for size in set(sizes[:-1])):
            return 1
        most = self.DEVICE_BYTES if device.type == "cuda" else self.CACHED_BYTES
        return max(1, most // (image_bytes * max(sizes, default=1)))

    def _gather(self, groups: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
        """Yield the rows (B, C * H * W) of each index group on the device."""
        if device.type != "cuda" or self._rows.device == device:
            return (self._rows.index_select(0, group).to(device) for group in groups)
        # Copies from pinned memory overlap with what the GPU computes; a thread fills it beforehand.
        pinned = ahead(self._pinned, groups)
        return (rows.to(device, non_blocking=True) for rows in pinned)

    def _pinned(self, group: Tensor) -> Tensor:
        rows = torch.empty((len(group), self._rows.shape[1]), dtype=torch.uint8, pin_memory=True)
        return torch.index_select(self._rows, 0, group, out=rows)

    def _move_near(self, device: torch.device) -> None:
        if device.type != "cuda" or self._rows.device == device:
            return
        free, _ = torch.cuda.mem_get_info(device)
        if self._rows.nbytes <= free * self.DEVICE_SHARE:
            self._rows = self._rows.to(device)
            self.labels = self.labels.to(device)


def memory_of(parts: Iterable[Images]) -> str:
    """Say how much memory images take, and of what kind; those of several splits count once."""
    sets = {id(images): images for images in parts}.values()
    mapped = sum(images.nbytes for images in sets if images.mapped)
    read = sum(images.nbytes for images in sets if not images.mapped)
    told = [
        f"{size / 1e6:,.1f} MB {kind}" for size, kind in ((mapped, "mapped"), (read, "in memory")) if size
    ]
    return ", ".join(told) or "streamed from files"


def stratified_split(labels: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split rows so that each class keeps its share on both sides.

    Args:
        labels: (N,) long.
        size: rows of the second part.
        generator: draws them.

    Returns:
        Row numbers of the first part (N - size,) and of the second (size,), both ascending.

    Raises:
        InputError: `size` leaves no row for the first part.
    """
    count = len(labels)
    if not 0 <= size < count:
        raise InputError(f"data: cannot take {size} of {count} images away; choose 0 to {count - 1}")
    shuffled = torch.randperm(count, generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    # Evenly spaced rows of the list sorted by class: each class gives its share, rounded, `size` in all.
    taken = (torch.arange(size) * count + count // 2) // max(1, size)
    mask = torch.zeros(count, dtype=torch.bool)
    mask[by_class[taken]] = True
    return torch.nonzero(~mask).flatten(), torch.nonzero(mask).flatten()


def stratified_fold(
    labels: Tensor, folds: int, fold: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Cut rows into `folds` parts of nearly equal size, and set one of them apart.

    The parts are disjoint and hold all rows; how many rows of a class they have differs by one at most.

    Args:
        labels: (N,) long.
        folds: number of parts.
        fold: the part set apart.
        generator: draws them; the same one gives the same parts.

    Returns:
        Row numbers of the other parts together and of the one set apart, both ascending.

    Raises:
        InputError: there are fewer rows than parts.
    """
    count = len(labels)
    if not 2 <= folds <= count:
        raise InputError(f"data.folds={folds}: choose 2 to {count}, the number of training images")
    shuffled = torch.randperm(count, generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    apart = torch.zeros(count, dtype=torch.bool)
    apart[by_class[fold::folds]] = True  # dealt out in turn, class after class
    return torch.nonzero(~apart).flatten(), torch.nonzero(apart).flatten()


def cut_validation(
    labels: Tensor, val_size: float, folds: int | None, fold: int, split_seed: int
) -> tuple[Tensor, Tensor]:
    """Rows that train and rows that validate, of images with these labels (N,); see `ImageDataModule`.

    Raises:
        InputError: `val_size` leaves none to train, or rounds to none to validate.
    """
    if folds is not None:
        return stratified_fold(labels, folds, fold, generator(split_seed))
    count = len(labels)
    size = images_of(val_size, count)
    if not 0 <= size < count or bool(size) != bool(val_size):
        raise InputError(
            f"data.val_size={val_size}: choose 0 to {count - 1} of the {count} training images, "
            f"or a fraction from {1 / count:.2g} to below 1"
        )
    return stratified_split(labels, size, generator(split_seed))


def images_of(share: float, count: int) -> int:
    """Number of images that `share` means: a fraction of `count` below 1, or a whole number; else -1."""
    if share < 1:
        return math.floor(share * count + 0.5)
    return share if isinstance(share, int) else -1
