"""MNIST: 60,000 training and 10,000 test images of handwritten digits, 28×28, gray."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from project.datamodules.base import ImageDataModule, Split
from project.datamodules.downloads.archives import Archive, obtain
from project.datamodules.downloads.fetch import fetch
from project.datamodules.storage.idx import map_idx
from project.errors import DataError

FOLDER = Path("MNIST/raw")
CHECKSUMS = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
PREFIXES = {"train": "train", "test": "t10k"}
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
)
ARCHIVES = {  # MD5 and size of each file as it is downloaded, compressed by gzip
    "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", 9_912_422),
    "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", 28_881),
    "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", 1_648_877),
    "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", 4_542),
}
LARGEST = 50_000_000
"""Bytes that none of the files exceeds."""


class MNIST(ImageDataModule):
    """MNIST (LeCun et al. 1998) with its official test split, downloaded.

    The files are mapped: images take memory of no process, and once in the page cache are there for all.

    Args:
        path: folder of the data sets; the files lie in `MNIST/raw` below it, as torchvision wants them.
        input_shape: see `ImageDataModule`; another one than the images' own needs `resize` or `grayscale`.
        num_classes: ten.
        base: see `ImageDataModule`.
    """

    maps_files = True

    def __init__(
        self, path: str, *, input_shape: Sequence[int] = (1, 28, 28), num_classes: int = 10, **base: Any
    ) -> None:
        super().__init__(name="mnist", input_shape=input_shape, num_classes=num_classes, **base)
        self.path = Path(path)

    def prepare_data(self) -> None:
        """Download the files unless they are there and undamaged."""
        fetch("mnist", self.path, FOLDER, CHECKSUMS, download, self.prepared.checksums)

    def content(self, split: Split) -> Mapping[str, Any] | None:
        """Name what is kept: scaled images, for others are mapped from the files themselves."""
        if split == "val" or self.input_shape[1:] == (28, 28):
            return None
        return {"files": sorted(CHECKSUMS.items())}

    def read(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """Return images (N, 1, 28, 28) uint8, mapped, and labels (N,)."""
        if split == "val":
            return None
        folder = self.path / FOLDER
        images = map_idx(folder / f"{PREFIXES[split]}-images-idx3-ubyte", "mnist")
        labels = map_idx(folder / f"{PREFIXES[split]}-labels-idx1-ubyte", "mnist")
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            raise DataError(
                f"paths.data={self.path}: the {split} files of data=mnist hold images "
                f"{list(images.shape)} and labels {list(labels.shape)}; remove {folder}, and they are "
                "downloaded anew"
            )
        if (highest := int(labels.max())) > 9:
            raise DataError(
                f"paths.data={self.path}: a label of the {split} images of data=mnist is {highest}, they are "
                f"0 to 9; remove {folder}, and the files are downloaded anew"
            )
        return images[:, None], labels.long()


def download(root: str, mirrors: Sequence[str] = MIRRORS) -> None:
    """Download the four files into `MNIST/raw` of a folder.

    Args:
        root: the folder.
        mirrors: addresses below which the compressed files lie.

    Raises:
        ArchiveError: they cannot be had.
    """
    folder = Path(root) / FOLDER
    folder.mkdir(parents=True)
    obtain(
        [
            Archive(f"{name}.gz", mirrors, md5, size, [name], LARGEST)
            for name, (md5, size) in ARCHIVES.items()
        ],
        folder,
    )
