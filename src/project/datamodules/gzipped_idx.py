"""Data sets in the format of MNIST, as published: four compressed IDX files."""

import gzip
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from project.datamodules.base import Split
from project.datamodules.downloads import Archive
from project.datamodules.mnist import idx_header
from project.datamodules.published import PublishedDataModule
from project.errors import DataError


class GzippedIdxDataModule(PublishedDataModule):
    """Base class of data sets with the four files of MNIST, which stay compressed."""

    def load_split(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """Return images (N, 1, H, W) uint8 and labels (N,)."""
        if split == "val":
            return None
        prefix = "t10k" if split == "test" else "train"
        images, labels = (
            read_gzipped_idx(self.folder / f"{prefix}-{kind}-ubyte.gz")
            for kind in ("images-idx3", "labels-idx1")
        )
        return images[:, None], labels.long()


def idx_archives(mirrors: Sequence[str], checksums: Mapping[str, str], sizes: Sequence[int]) -> list[Archive]:
    """Return the archives of compressed files.

    Args:
        mirrors: URLs of the folder.
        checksums: MD5 of each file, by its name.
        sizes: size of each file, in the same order [bytes].
    """
    return [
        Archive(name, mirrors, md5, size) for (name, md5), size in zip(checksums.items(), sizes, strict=True)
    ]


def read_gzipped_idx(file: Path) -> Tensor:
    """Read a compressed IDX file of unsigned bytes.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        return parse_idx(gzip.decompress(file.read_bytes()))
    except (OSError, EOFError, ValueError, zlib.error, struct.error) as error:
        raise DataError(
            f"paths.data: {file} is damaged ({error}); remove the file to download it again"
        ) from error


def parse_idx(content: bytes) -> Tensor:
    """Return the tensor of an IDX file of unsigned bytes; raises the errors of `mnist.idx_header`."""
    first, shape = idx_header(content, len(content))
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=first).copy()).view(shape)
