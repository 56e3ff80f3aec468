"""SVHN: 73,257 training and 26,032 test images of house numbers, 32×32, color."""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from project.datamodules.base import Split
from project.datamodules.downloads import Archive
from project.datamodules.published import PublishedDataModule
from project.errors import DataError, summarize
from project.runtime.extras import import_extra

CHECKSUMS = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}
MIRRORS = ("http://ufldl.stanford.edu/housenumbers",)
SIZES = (182_040_794, 64_275_384)  # bytes


class SVHN(PublishedDataModule):
    """Cropped digits of SVHN (Netzer et al. 2011) with the official test split, downloaded; needs SciPy.

    Args:
        path: folder of the data sets; its subfolder `SVHN` holds the files.
        base: arguments of `ImageDataModule`.

    Raises:
        InputError: SciPy is not installed.
    """

    DATASET_FACTS: ClassVar = {"images": 73_257, "shape": (3, 32, 32), "classes": 10, "download": "path"}
    NAME = "svhn"
    FOLDER = Path("SVHN")
    CHECKSUMS = CHECKSUMS
    ARCHIVES = tuple(
        Archive(name, MIRRORS, md5, size) for (name, md5), size in zip(CHECKSUMS.items(), SIZES, strict=True)
    )

    def prepare_data(self) -> None:
        import_extra("scipy.io", "data=svhn", "svhn")  # before a download of 246 MB
        super().prepare_data()

    def load_split(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """Return images (N, 3, 32, 32) uint8 and labels (N,)."""
        if split == "val":
            return None
        file = self.folder / f"{split}_32x32.mat"
        loadmat = import_extra("scipy.io", "data=svhn", "svhn").loadmat
        try:
            content = loadmat(file, variable_names=["X", "y"])
            pixels, labels = content["X"], content["y"]
        except Exception as error:  # SciPy raises exceptions of many types for damaged files
            raise DataError(
                f"paths.data={self.path}: {file} is damaged ({summarize(error)}); remove the file to "
                "download it again"
            ) from error
        images = torch.from_numpy(pixels).permute(3, 2, 0, 1)  # from H, W, C, N
        return images.contiguous(), torch.from_numpy(labels).long().flatten() % 10  # 10 is the digit 0
