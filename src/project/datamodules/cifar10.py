"""CIFAR-10: 50,000 training and 10,000 test images of ten classes, 32×32, colour."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from project.datamodules.base import ImageDataModule, Split
from project.datamodules.downloads.archives import Archive, obtain
from project.datamodules.downloads.fetch import fetch, verify
from project.datamodules.storage.plain_pickle import load_plain
from project.errors import DataError

FOLDER = Path("cifar-10-batches-py")
TRAINING_FILES = [f"data_batch_{number}" for number in range(1, 6)]
TEST_FILES = ["test_batch"]
CHECKSUMS = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
MIRRORS = ("https://www.cs.toronto.edu/~kriz",)
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_MD5, ARCHIVE_SIZE = "c58f30108f718f92721af3b95e74349a", 170_498_071
LARGEST = 32_000_000
"""Bytes that none of the files exceeds."""
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class CIFAR10(ImageDataModule):
    """CIFAR-10 (Krizhevsky 2009) with its official test split, downloaded.

    Args:
        path: folder of the data sets; the files lie in `cifar-10-batches-py` below it.
        input_shape: see `ImageDataModule`; another one than the images' own needs `resize` or `grayscale`.
        num_classes: ten.
        base: see `ImageDataModule`.
    """

    def __init__(
        self, path: str, *, input_shape: Sequence[int] = (3, 32, 32), num_classes: int = 10, **base: Any
    ) -> None:
        super().__init__(name="cifar10", input_shape=input_shape, num_classes=num_classes, **base)
        self.path = Path(path)

    @property
    def class_names(self) -> list[str]:
        """Names of the ten classes."""
        return CLASSES

    def prepare_data(self) -> None:
        """Download the files unless they are there and undamaged."""
        fetch("cifar10", self.path, FOLDER, CHECKSUMS, download, self.prepared.checksums)

    def content(self, split: Split) -> Mapping[str, Any] | None:
        """Name what is kept: the images of the pickled files."""
        return None if split == "val" else {"files": sorted(CHECKSUMS.items())}

    def read(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """Return images (N, 3, 32, 32) uint8 and labels (N,)."""
        if split == "val":
            return None
        # Only files that are known to the byte are unpickled, and of those only plain values.
        verify("cifar10", self.path, FOLDER, CHECKSUMS, self.prepared.checksums)
        pixels: list[Any] = []
        labels: list[int] = []
        for name in TEST_FILES if split == "test" else TRAINING_FILES:
            file = self.path / FOLDER / name
            batch = load_plain(file)
            if not isinstance(batch, dict) or not {"data", "labels"} <= batch.keys():
                raise DataError(f"paths.data={self.path}: {file} holds no images; remove it")
            pixels.append(batch["data"])
            labels += batch["labels"]
        images = torch.from_numpy(np.concatenate(pixels)).view(-1, 3, 32, 32)
        return images, torch.tensor(labels)


def download(root: str, mirrors: Sequence[str] = MIRRORS) -> None:
    """Download the seven files into `cifar-10-batches-py` of a folder.

    Args:
        root: the folder.
        mirrors: addresses below which the archive lies.

    Raises:
        ArchiveError: they cannot be had.
    """
    folder = Path(root) / FOLDER
    folder.mkdir(parents=True)
    members = [f"{FOLDER.name}/{name}" for name in CHECKSUMS]
    obtain([Archive(ARCHIVE, mirrors, ARCHIVE_MD5, ARCHIVE_SIZE, members, LARGEST)], folder)
