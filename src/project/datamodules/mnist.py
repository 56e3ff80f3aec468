"""MNIST: 60,000 training and 10,000 test images of handwritten digits, 28×28, gray."""

import math
import struct
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from project.datamodules.base import Split
from project.datamodules.downloads import Archive, download_archives, ensure_downloaded
from project.datamodules.image_base import ImageDataModule
from project.errors import DataError

FOLDER = Path("MNIST/raw")
CHECKSUMS = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
)
ARCHIVES = [
    Archive(f"{name}.gz", MIRRORS, md5, size, [name], unpacked_size=50_000_000)
    for name, md5, size in (
        ("train-images-idx3-ubyte", "f68b3c2dcbeaaa9fbdd348bbdeb94873", 9_912_422),
        ("train-labels-idx1-ubyte", "d53e105ee54ea40749a09fcbcd1e9432", 28_881),
        ("t10k-images-idx3-ubyte", "9fb629c4189551a2d022fa330f9573f3", 1_648_877),
        ("t10k-labels-idx1-ubyte", "ec29112dd5afa0611ce80d1b7f02629c", 4_542),
    )
]
UNSIGNED_BYTE = 0x08  # type code of the IDX format
MAX_HEADER = 16
"""Size of the header of an IDX file with three dimensions [bytes]."""


class MNIST(ImageDataModule):
    """MNIST (LeCun et al. 1998) with its official test split, downloaded and memory-mapped.

    Args:
        path: folder of the data sets; its subfolder `MNIST/raw` holds the files, as in torchvision.
        input_shape: see `ImageDataModule` (default [1, 28, 28]); other shapes need `resize`.
        num_classes: 10.
        base: arguments of `ImageDataModule`.
    """

    DATASET_FACTS: ClassVar = {"images": 60_000, "shape": (1, 28, 28), "classes": 10, "download": "path"}

    is_mapped = True

    def __init__(
        self, path: str, *, input_shape: Sequence[int] = (1, 28, 28), num_classes: int = 10, **base: Any
    ) -> None:
        super().__init__(name="mnist", input_shape=input_shape, num_classes=num_classes, **base)
        self.path = Path(path)

    def prepare_data(self) -> None:
        download = partial(download_archives, ARCHIVES)
        ensure_downloaded("mnist", self.path, FOLDER, CHECKSUMS, download, self.image_cache.checksums)

    def cache_key(self, split: Split) -> Mapping[str, Any] | None:
        """Return the checksums of the files if images are scaled; others are mapped from the files."""
        if split == "val" or self.input_shape[1:] == (28, 28):
            return None
        return {"files": sorted(CHECKSUMS.items())}

    def load_split(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """Return memory-mapped images (N, 1, 28, 28) uint8, and labels (N,)."""
        if split == "val":
            return None
        folder = self.path / FOLDER
        prefix = "t10k" if split == "test" else "train"
        images = map_idx_file(folder / f"{prefix}-images-idx3-ubyte")
        labels = map_idx_file(folder / f"{prefix}-labels-idx1-ubyte")
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or labels.max() > 9:
            raise DataError(
                f"paths.data={self.path}: the {split} files of data=mnist hold images {list(images.shape)} "
                f"and labels {list(labels.shape)} up to {int(labels.max())} (expected 28×28 pixels, and "
                f"one label per image, 0 to 9); remove {folder} to download the files again"
            )
        return images[:, None], labels.long()


def map_idx_file(file: Path) -> Tensor:
    """Memory-map an IDX file of unsigned bytes, and return a tensor of the shape in its header.

    Raises:
        DataError: the file is missing, or its header and its size disagree.
    """
    try:
        with file.open("rb") as stream:
            first, shape = idx_header(stream.read(MAX_HEADER), file.stat().st_size)
        return map_bytes(file, first, math.prod(shape)).view(shape)
    except (OSError, ValueError, struct.error) as error:
        raise DataError(
            f"paths.data: {file} of data=mnist is damaged ({error}); remove the file to download it again"
        ) from error


def idx_header(content: bytes, size: int) -> tuple[int, tuple[int, ...]]:
    """Return the offset of the values in an IDX file of unsigned bytes, and their shape.

    Format: http://yann.lecun.com/exdb/mnist, "The IDX file format": big-endian header, then the values.

    Args:
        content: the file, or its first `MAX_HEADER` bytes.
        size: size of the file [bytes].

    Raises:
        ValueError: the values are of another type, or header and size disagree.
        struct.error: the header is incomplete.
    """
    zeros, kind, dimensions = struct.unpack_from(">HBB", content)
    if (zeros, kind) != (0, UNSIGNED_BYTE) or not 1 <= dimensions <= 3:
        raise ValueError(f"magic number {zeros:04x}{kind:02x}{dimensions:02x}, expected 0000080…")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    first, count = 4 + 4 * dimensions, math.prod(shape)
    if size != first + count or not count:
        sides = "×".join(map(str, shape))
        raise ValueError(f"{size:,} bytes, expected {first + count:,} for {sides} values")
    return first, shape


def map_bytes(file: Path, first: int, count: int) -> Tensor:
    """Memory-map `count` bytes of a file, starting at offset `first`, as a tensor (count,) uint8.

    The mapping is private (copy-on-write): writing to the tensor does not change the file. If the file system
    or a memory limit forbids the mapping, the bytes are read instead.

    Raises:
        OSError: the file is missing or too short.
    """
    size = file.stat().st_size
    if size < first + count:
        raise OSError(f"{file} has {size:,} bytes (expected at least {first + count:,})")
    try:
        return torch.from_file(str(file), shared=False, size=first + count, dtype=torch.uint8)[first:]
    except RuntimeError:
        return torch.from_numpy(np.fromfile(file, dtype=np.uint8, count=count, offset=first))
