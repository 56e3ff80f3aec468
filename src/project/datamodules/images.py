"""Where images lie: in memory as one tensor, or in files that worker processes decode."""

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from project.datamodules.order import EvaluationOrder, Order
from project.errors import InputError


class Images(Protocol):
    """Labelled images that can be fetched in any order."""

    labels: Tensor  # N, long
    shape: tuple[int, int, int]  # C, H, W

    def batches(self, order: Order, rows: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, C, H, W) uint8 and labels (B,) on `device`, for each index batch of `order`.

        Args:
            order: yields positions in `rows`.
            rows: the images of one split, as row numbers (N',).
            device: where batches are wanted.
        """
        ...

    def sample(self, rows: Tensor) -> Tensor:
        """Return the images (B, C, H, W) uint8 of these rows, on the CPU."""
        ...


class MemoryImages:
    """Images in one tensor: a batch is one indexing operation, on the device if they fit there.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) long.
    """

    DEVICE_SHARE = 0.25  # of a GPU's free memory that images may take

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        assert images.dtype == torch.uint8
        assert images.ndim == 4
        self.images = images
        self.labels = labels
        channels, height, width = images.shape[1:]
        self.shape = (channels, height, width)

    def batches(self, order: Order, rows: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Images.batches`."""
        self._move_near(device)
        home = self.images.device
        positions = list(order)
        chosen = rows[torch.cat(positions)].to(home)  # one transfer an epoch: a GPU never waits for it
        for batch in chosen.split([len(part) for part in positions]):
            yield (
                self.images[batch].to(device, non_blocking=True),
                self.labels[batch].to(device, non_blocking=True),
            )

    def sample(self, rows: Tensor) -> Tensor:
        """See `Images.sample`."""
        return self.images[rows.to(self.images.device)].cpu()

    def _move_near(self, device: torch.device) -> None:
        if device.type != "cuda" or self.images.device == device:
            return
        free, _ = torch.cuda.mem_get_info(device)
        if self.images.nbytes <= free * self.DEVICE_SHARE:
            self.images = self.images.to(device)
            self.labels = self.labels.to(device)


class FileImages:
    """Images in files, decoded by worker processes while the device computes.

    Args:
        files: one path an image.
        labels: (N,) long.
        decode: reads a file into (C, H, W) uint8; all images have the same shape.
        shape: (C, H, W) that `decode` gives.
        workers: processes that decode.
        timeout_s: seconds after which a batch that does not come is an error.
    """

    def __init__(
        self,
        files: Sequence[Path],
        labels: Tensor,
        decode: Callable[[Path], Tensor],
        shape: tuple[int, int, int],
        workers: int,
        timeout_s: float = 120,
    ) -> None:
        self.files = files
        self.labels = labels
        self.decode = decode
        self.shape = shape
        self.workers = workers
        self.timeout_s = timeout_s if workers else 0
        self._loaders: WeakKeyDictionary[Order, DataLoader[Item]] = WeakKeyDictionary()

    def batches(self, order: Order, rows: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Images.batches`."""
        if order not in self._loaders:
            self._loaders[order] = DataLoader(
                _Files(self.files, self.labels, self.decode),
                batch_sampler=_RowBatches(order, rows),
                collate_fn=_collate,
                num_workers=self.workers,
                persistent_workers=self.workers > 0,  # starting them anew each epoch is slow
                pin_memory=device.type == "cuda",
                timeout=self.timeout_s,
            )
        for batch in self._loaders[order]:
            if isinstance(batch, InputError):
                raise batch
            images, labels = batch
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    def in_memory(self) -> MemoryImages:
        """Decode all images once."""
        images = torch.empty((len(self.files), *self.shape), dtype=torch.uint8)
        order = EvaluationOrder(len(self.files), batch_size=256)
        first = 0
        for part, _ in self.batches(order, torch.arange(len(self.files)), torch.device("cpu")):
            images[first : first + len(part)] = part
            first += len(part)
        return MemoryImages(images, self.labels)

    def sample(self, rows: Tensor) -> Tensor:
        """See `Images.sample`."""
        return torch.stack([self.decode(self.files[row]) for row in rows.tolist()])


Item = tuple[Tensor, Tensor] | InputError
"""An image (C, H, W) uint8 and its label, or why there is none. That is handed on rather than raised: a
worker's exception would arrive as a text with a traceback in it.
"""


class _Files(Dataset[Item]):
    def __init__(self, files: Sequence[Path], labels: Tensor, decode: Callable[[Path], Tensor]) -> None:
        self.files = files
        self.labels = labels
        self.decode = decode

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Item:
        try:
            return self.decode(self.files[row]), self.labels[row]
        except InputError as error:
            return error


def _collate(items: list[Item]) -> Any:
    return next((item for item in items if isinstance(item, InputError)), None) or default_collate(items)


class _RowBatches:
    """Rows of each batch of the order's present epoch, as `DataLoader` wants them."""

    def __init__(self, order: Order, rows: Tensor) -> None:
        # A strong reference would keep the key of `FileImages._loaders` alive for ever.
        self._order = weakref.ref(order)
        self.rows = rows

    def __len__(self) -> int:
        return len(self._alive())

    def __iter__(self) -> Iterator[list[int]]:
        for positions in self._alive():
            yield self.rows[positions].tolist()

    def _alive(self) -> Order:
        order = self._order()
        assert order is not None
        return order


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


def images_of(share: float, count: int) -> int:
    """Number of images that `share` means: a fraction of `count` below 1, or a whole number; else -1."""
    if share < 1:
        return math.floor(share * count + 0.5)
    return share if isinstance(share, int) else -1
