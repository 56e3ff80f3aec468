"""Images or vectors with targets in memory or in files, and a loader of normalized batches on the device."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from project.datamodules.loading.augmentation import Augmentation, resize
from project.datamodules.loading.batch_order import EvaluationOrder, Order, TrainingOrder
from project.datamodules.loading.prefetch import prefetch, worker_setup
from project.errors import DataError, InputError
from project.runtime.seeding import batch_generators

MAX_NAMED = 10  # damaged files listed in an error


class BatchGroup(NamedTuple):
    """Consecutive batches, concatenated: one indexing operation fetches all of them."""

    rows: Tensor  # B1 + B2 + …, C * H * W; uint8, in the memory order of the images
    labels: Tensor  # B1 + B2 + …, or B1 + B2 + …, K
    sizes: list[int]  # B1, B2, …


class Images(ABC):
    """Images, or vectors of features, with targets and random access.

    Args:
        labels: class indices (N,) long, or targets (N, K) float.
        shape: (C, H, W) of an image, (F,) of a vector.
        channels_last: store pixels in H, W, C order.
    """

    nbytes = 0  # memory of all images; 0 if they are streamed
    is_mapped = False  # True for a memory-mapped file, whose memory all processes share

    def __init__(self, labels: Tensor, shape: tuple[int, ...], *, channels_last: bool) -> None:
        self.labels = labels
        self.shape = shape
        self.channels_last = channels_last and shape[0] > 1  # both orders are the same for one channel

    @abstractmethod
    def groups(self, order: Order, rows: Tensor, device: torch.device) -> Callable[[], Iterator[BatchGroup]]:
        """Return a function that yields one epoch's batches on `device`, in groups.

        `order` yields indices into `rows`, the row numbers (N',) of one split.
        """

    @abstractmethod
    def sample(self, rows: Tensor) -> Tensor:
        """Return the images (B, C, H, W) uint8 of these rows, on the CPU."""

    def to_rows(self, images: Tensor) -> Tensor:
        """Flatten images (B, C, H, W) to (B, C * H * W) in this memory order; a view if possible."""
        return (images.permute(0, 2, 3, 1) if self.channels_last else images).flatten(1)

    def from_rows(self, rows: Tensor) -> Tensor:
        """View rows (B, C * H * W) as images (B, C, H, W)."""
        if self.channels_last:
            channels, height, width = self.shape
            return rows.view(-1, height, width, channels).permute(0, 3, 1, 2)
        return rows.view(-1, *self.shape)

    def normalization(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return shift and scale (C * H * W,) that normalize rows: `(rows - shift) * scale`."""
        shift, scale = normalization(mean, std, device)
        return tuple(self.to_rows(values.expand(1, *self.shape))[0] for values in (shift, scale))  # type: ignore[return-value]


class MemoryImages(Images):
    """Images in one tensor, moved to the device if they fit; indexing fetches several batches at once.

    Args:
        images: (N, C, H, W) uint8; copied if their memory order differs from `channels_last`.
        is_mapped: `images` is a memory-mapped file (default False).
    """

    DEVICE_FRACTION = 0.25  # share of a GPU's free memory that images may take
    # Maximum size of a group's normalized images. Four operations read them: on a CPU they must fit its
    # cache, on a GPU an operation must take longer than a kernel launch.
    CACHED_BYTES = 2**20
    DEVICE_BYTES = 2**24
    # Every batch starts at a multiple of this many bytes, as a separate allocation does. The last bits of
    # matrix products can depend on the alignment, and a resumed run groups its batches differently.
    ALIGNMENT = 64

    def __init__(
        self, images: Tensor, labels: Tensor, *, channels_last: bool = False, is_mapped: bool = False
    ) -> None:
        super().__init__(labels, tuple(images.shape[1:]), channels_last=channels_last)
        self._rows = self.to_rows(images)  # N, C * H * W
        self.nbytes = self._rows.nbytes
        self.is_mapped = is_mapped and self._rows.data_ptr() == images.data_ptr()

    @property
    def images(self) -> Tensor:
        """All images (N, C, H, W) uint8."""
        return self.from_rows(self._rows)

    def groups(self, order: Order, rows: Tensor, device: torch.device) -> Callable[[], Iterator[BatchGroup]]:
        return partial(self._groups, order, rows, device)

    def sample(self, rows: Tensor) -> Tensor:
        return self.from_rows(self._rows.index_select(0, rows.to(self._rows.device)).cpu())

    def _groups(self, order: Order, rows: Tensor, device: torch.device) -> Iterator[BatchGroup]:
        self._move_to(device)
        indices, sizes = order.draw()
        chosen = rows[indices].to(self._rows.device)  # one transfer per epoch, without stalls of the GPU
        labels = self.labels[chosen].to(device)
        count = self._batches_per_group(sizes, device)
        grouped = [sizes[first : first + count] for first in range(0, len(sizes), count)]
        lengths = [sum(group) for group in grouped]
        yield from map(
            BatchGroup, self._gather(chosen.split(lengths), device), labels.split(lengths), grouped
        )

    def _batches_per_group(self, sizes: list[int], device: torch.device) -> int:
        image_bytes = 4 * self._rows.shape[1]  # as float
        if any(size * image_bytes % self.ALIGNMENT for size in set(sizes[:-1])):
            return 1
        most = self.DEVICE_BYTES if device.type == "cuda" else self.CACHED_BYTES
        return max(1, most // (image_bytes * max(sizes, default=1)))

    def _gather(self, groups: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
        """Yield the rows (B, C * H * W) of each index group on the device."""
        if device.type != "cuda" or self._rows.device == device:
            return (self._rows.index_select(0, group).to(device) for group in groups)
        # A thread fills pinned memory in advance; copies from pinned memory overlap with GPU kernels.
        return (rows.to(device, non_blocking=True) for rows in prefetch(self._pinned, groups))

    def _pinned(self, group: Tensor) -> Tensor:
        rows = torch.empty((len(group), self._rows.shape[1]), dtype=self._rows.dtype, pin_memory=True)
        return torch.index_select(self._rows, 0, group, out=rows)

    def _move_to(self, device: torch.device) -> None:
        if device.type != "cuda" or self._rows.device == device:
            return
        free, _ = torch.cuda.mem_get_info(device)
        if self._rows.nbytes <= free * self.DEVICE_FRACTION:
            self._rows = self._rows.to(device)
            self.labels = self.labels.to(device)


class MemoryVectors(MemoryImages):
    """Vectors of features (N, F) float32 in one tensor, each feature standardized by its own mean and std."""

    def normalization(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        return torch.tensor(mean, device=device), 1 / torch.tensor(std, device=device)


Batch = tuple[Tensor, Tensor] | InputError
"""Rows (B, C * H * W) uint8 and labels (B,), or the error of damaged files. Workers return errors because
torch converts an exception in a worker to text with a traceback.
"""


class FileImages(Images, Dataset[Batch]):
    """Image files that worker processes decode during training.

    Args:
        files: one path per image.
        labels: (N,) long.
        decode: function that reads a file and returns (C, H, W) uint8.
        shape: (C, H, W).
        workers: number of decoding processes; 0 decodes in this process.
        channels_last: store pixels in H, W, C order (default False).
        timeout_s: time after which a missing batch is an error (default 120 s).
    """

    def __init__(
        self,
        files: Sequence[str],
        labels: Tensor,
        decode: Callable[[str], Tensor],
        shape: tuple[int, int, int],
        workers: int,
        *,
        channels_last: bool = False,
        timeout_s: float = 120,
    ) -> None:
        super().__init__(labels, shape, channels_last=channels_last)
        self.files = files
        self.decode = decode
        self.workers = workers
        self.timeout_s = timeout_s

    def groups(self, order: Order, rows: Tensor, device: torch.device) -> Callable[[], Iterator[BatchGroup]]:
        return partial(self._groups, self._loader(order, rows, pin=device.type == "cuda"), device)

    def sample(self, rows: Tensor) -> Tensor:
        return torch.stack([self.decode(self.files[row]) for row in rows.tolist()])

    def decode_all(self) -> Tensor:
        """Decode all images to a tensor (N, C, H, W) uint8 in the memory order of `channels_last`.

        Raises:
            DataError: one line for each damaged file, at most `MAX_NAMED`.
        """
        rows = torch.empty((len(self.files), math.prod(self.shape)), dtype=torch.uint8)
        order = EvaluationOrder(len(self.files), batch_size=256)
        first = 0
        errors: list[InputError] = []
        for batch in self._loader(order, torch.arange(len(self.files)), pin=False):
            if isinstance(batch, InputError):
                errors.append(batch)
            elif not errors:
                rows[first : first + len(batch[0])] = batch[0]
                first += len(batch[0])
            if len(errors) > MAX_NAMED:
                break
        if errors:
            raise join_errors(errors)
        return self.from_rows(rows)

    def __getitem__(self, rows: list[int]) -> Batch:
        """Decode a batch."""
        decoded: list[Tensor] = []
        errors: list[InputError] = []
        for row in rows:
            try:
                decoded.append(self.to_rows(self.decode(self.files[row])[None])[0])
            except InputError as error:
                errors.append(error)
        return join_errors(errors) if errors else (default_collate(decoded), self.labels[rows])

    def _groups(self, loader: "DataLoader[Batch]", device: torch.device) -> Iterator[BatchGroup]:
        for batch in loader:
            if isinstance(batch, InputError):
                try:
                    raise batch
                finally:
                    del batch  # the reference cycle with its traceback would keep the workers alive
            images, labels = (part.to(device, non_blocking=True) for part in batch)
            yield BatchGroup(images, labels, [len(images)])

    def _loader(self, order: Order, rows: Tensor, *, pin: bool) -> "DataLoader[Batch]":
        return DataLoader(
            self,
            batch_size=None,  # an item is a batch
            sampler=_RowBatches(order, rows),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,  # starting processes takes time in each epoch
            pin_memory=pin,
            timeout=self.timeout_s if self.workers else 0,
            worker_init_fn=worker_setup() if self.workers else None,
            generator=torch.Generator(),  # else each start would draw from the network's random stream
        )


class _RowBatches:
    """Sampler for a `DataLoader` that yields the row numbers of each batch."""

    def __init__(self, order: Order, rows: Tensor) -> None:
        self.order = order
        self.rows = rows

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[int]]:
        for positions in self.order:
            yield self.rows[positions].tolist()


def join_errors(errors: Sequence[InputError]) -> InputError:
    """Join the errors of damaged files, a line each; return the first error of another kind instead."""
    if other := next((error for error in errors if not isinstance(error, DataError)), None):
        return other
    lines = list(dict.fromkeys(line for error in errors for line in str(error).splitlines()))
    if len(lines) > MAX_NAMED:
        lines[MAX_NAMED:] = ["… and more damaged files"]
    return DataError("\n".join(lines))


def normalization(
    mean: Sequence[float], std: Sequence[float], device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Return shift and scale (C, 1, 1) that normalize pixels: `(pixels - shift) * scale`.

    Args:
        mean: mean of each channel on the scale [0, 1]; pixels range from 0 to 255.
        std: standard deviation of each channel on the same scale.
        device: device of the result (default CPU).
    """
    shift = 255 * torch.tensor(mean, device=device).view(-1, 1, 1)
    return shift, 1 / (255 * torch.tensor(std, device=device).view(-1, 1, 1))


class ImageLoader:
    """Loader of normalized, augmented batches of one split.

    Args:
        images: labeled images that contain the split.
        rows: (N',) row numbers of the split.
        order: batch order, as indices into `rows`.
        mean: mean of each channel on the scale [0, 1].
        std: standard deviation of each channel on the same scale.
        device: device of the batches.
        augmentation: augmentation of normalized batches (default None).
        seed: seed of the augmentation, with epoch, batch and rank (default 0).
        rank: rank of this process (default 0).
    """

    batch_sampler = None  # Lightning reads this attribute of loaders that have a sampler
    resumes_exactly = True  # the order continues within an epoch

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
        # Flat rows in the memory order of the images: broadcasting one vector of pixels is fastest.
        self._shift, self._scale = images.normalization(mean, std, device)  # C * H * W

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, C, H, W) float and targets: (B,) long, or (B, K) float with mixup or cutmix."""
        if self.augmentation is None:
            yield from self._normalized()
            return
        epoch, start = self.order.epoch, self.order.start
        generators = batch_generators(self.seed, epoch, start, self.rank, device=self.device)
        flips = self._flips(self.augmentation, epoch, start)
        _, height, width = self.images.shape  # vectors have no augmentation
        size = self.augmentation.image_size((height, width), epoch)
        has_policy = self.augmentation.policy is not None
        batches = self._pixels() if has_policy else self._normalized()
        for (images, labels), draws, flipped in zip(batches, generators, flips, strict=False):
            if has_policy:
                pixels = self.augmentation.apply_policy(images, draws)
                images = self._normalize(self.images.to_rows(pixels))
            images, targets = self.augmentation(images, labels, draws, flipped)
            yield resize(images, size), targets

    def _normalized(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalized images (B, C, H, W) and labels (B,) of each batch, group by group."""
        for rows, labels, sizes in self._groups():
            yield from zip(self._normalize(rows).split(sizes), labels.split(sizes), strict=True)

    def _pixels(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, C, H, W) uint8 and labels (B,) of each batch."""
        for rows, labels, sizes in self._groups():
            yield from zip(self.images.from_rows(rows).split(sizes), labels.split(sizes), strict=True)

    def _normalize(self, rows: Tensor) -> Tensor:
        """Return normalized images (B, C, H, W) of rows (B, C * H * W) uint8."""
        return self.images.from_rows(rows.float().sub_(self._shift).mul_(self._scale))

    def _flips(self, augmentation: Augmentation, epoch: int, start: int) -> Iterator[Tensor | None]:
        """Yield the flip mask (B,) of each batch; None if the augmentation draws flips per batch."""
        flipped = augmentation.epoch_flips(len(self.images.labels), self.seed, epoch)
        if flipped is None or not isinstance(self.order, TrainingOrder):
            return repeat(None)
        indices, sizes = self.order.indices(epoch, start)
        chosen = flipped[self.rows[indices]].to(self.device)  # one transfer per epoch
        return iter(chosen.split(sizes))
