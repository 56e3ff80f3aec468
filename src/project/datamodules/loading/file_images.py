"""Images in files that worker processes decode."""

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from project.datamodules.loading.batch_order import EvaluationOrder, Order
from project.datamodules.loading.images import Group, Layout
from project.datamodules.loading.workers import worker_setup
from project.errors import DataError, InputError


class FileImages(Layout):
    """Images in files, decoded by worker processes while the device computes.

    Args:
        files: one path an image.
        labels: (N,) long.
        decode: reads a file into (C, H, W) uint8; all images have the same shape.
        shape: (C, H, W) that `decode` gives.
        workers: processes that decode.
        channels_last: yield batches in that memory order.
        timeout_s: seconds after which a batch that does not come is an error.
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
        super().__init__(shape, channels_last=channels_last)
        self.files = files
        self.labels = labels
        self.decode = decode
        self.workers = workers
        self.timeout_s = timeout_s if workers else 0
        self.nbytes, self.mapped = 0, False
        self._loaders: WeakKeyDictionary[Order, DataLoader[Item]] = WeakKeyDictionary()

    def groups(self, order: Order, rows: Tensor, device: torch.device) -> Iterator[Group]:
        """See `Images.groups`; here each batch is one."""
        for batch in self._loader(order, rows, pin=device.type == "cuda"):
            if isinstance(batch, InputError):
                try:
                    raise batch
                finally:
                    del batch  # else its traceback keeps it, and the workers, until garbage is collected
            images, labels = batch
            yield Group(
                images.to(device, non_blocking=True), labels.to(device, non_blocking=True), [len(images)]
            )

    def _loader(self, order: Order, rows: Tensor, *, pin: bool) -> "DataLoader[Item]":
        """The loader of an order, whose workers stay from epoch to epoch."""
        if order not in self._loaders:
            layout = Layout(self.shape, channels_last=self.channels_last)
            self._loaders[order] = DataLoader(
                _Files(self.files, self.labels, self.decode, layout),
                batch_sampler=_RowBatches(order, rows),
                collate_fn=_collate,
                num_workers=self.workers,
                persistent_workers=self.workers > 0,  # starting them anew each epoch is slow
                pin_memory=pin,
                timeout=self.timeout_s,
                worker_init_fn=worker_setup() if self.workers else None,
            )
        return self._loaders[order]

    def decoded(self) -> Tensor:
        """Decode all images, to (N, C, H, W) uint8 in the memory order asked for.

        Raises:
            DataError: files are damaged; it names them, up to `MOST_NAMED`.
        """
        rows = torch.empty((len(self.files), math.prod(self.shape)), dtype=torch.uint8)
        order = EvaluationOrder(len(self.files), batch_size=256)
        first = 0
        errors: list[InputError] = []
        for batch in self._loader(order, torch.arange(len(self.files)), pin=False):
            if isinstance(batch, InputError):
                errors.append(batch)
                if len(str(join_damage(errors)).splitlines()) > MOST_NAMED or not isinstance(
                    batch, DataError
                ):
                    break
            else:
                rows[first : first + len(batch[0])] = batch[0]
                first += len(batch[0])
        if errors:
            raise join_damage(errors)
        return self.from_rows(rows)

    def sample(self, rows: Tensor) -> Tensor:
        """See `Images.sample`."""
        return torch.stack([self.decode(self.files[row]) for row in rows.tolist()])


MOST_NAMED = 10
"""Damaged files that an error names."""

Item = tuple[Tensor, Tensor] | InputError
"""An image as a row (C * H * W,) uint8 and its label, or why there is none. That is handed on rather than
raised: a worker's exception would arrive as a text with a traceback in it.
"""


class _Files(Dataset[Item]):
    def __init__(
        self, files: Sequence[str], labels: Tensor, decode: Callable[[str], Tensor], layout: Layout
    ) -> None:
        self.files = files
        self.labels = labels
        self.decode = decode
        self.layout = layout

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Item:
        try:
            return self.layout.to_rows(self.decode(self.files[row])[None])[0], self.labels[row]
        except InputError as error:
            return error


def _collate(items: list[Item]) -> Any:
    """A batch, or what is wrong with its files."""
    errors = [item for item in items if isinstance(item, InputError)]
    return join_damage(errors) if errors else default_collate(items)


def join_damage(errors: Sequence[InputError]) -> InputError:
    """One error that names several damaged files, a line each; any other error alone."""
    if other := next((error for error in errors if not isinstance(error, DataError)), None):
        return other
    lines = list(dict.fromkeys(line for error in errors for line in str(error).splitlines()))
    if len(lines) > MOST_NAMED:
        lines[MOST_NAMED:] = ["… and more damaged files"]
    return DataError("\n".join(lines))


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
