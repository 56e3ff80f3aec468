"""STL-10: 5,000 training and 8,000 test images of ten classes, 96×96, color."""

from pathlib import Path
from typing import ClassVar

from torch import Tensor

from project.datamodules.base import Split
from project.datamodules.downloads import Archive
from project.datamodules.mnist import map_bytes
from project.datamodules.published import PublishedDataModule
from project.errors import DataError

CHECKSUMS = {
    "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
    "train_y.bin": "5a34089d4802c674881badbb80307741",
    "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
    "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
}
FOLDER = Path("stl10_binary")
IMAGE_BYTES = 3 * 96 * 96


class STL10(PublishedDataModule):
    """Labeled images of STL-10 (Coates et al. 2011) with the official test split, downloaded.

    The archive has 2.6 GB; its unlabeled images are not unpacked.

    Args:
        path: folder of the data sets; its subfolder `stl10_binary` holds the files, as in torchvision.
        base: arguments of `ImageDataModule`.
    """

    DATASET_FACTS: ClassVar = {"images": 5_000, "shape": (3, 96, 96), "classes": 10, "download": "path"}
    NAME = "stl10"
    FOLDER = FOLDER
    CHECKSUMS = CHECKSUMS
    ARCHIVES = (
        Archive(
            "stl10_binary.tar.gz",
            mirrors=["http://ai.stanford.edu/~acoates/stl10"],
            md5="91f7769df0f17e558f3565bffb0c7dfb",
            size=2_640_397_119,
            members=[f"{FOLDER.name}/{name}" for name in CHECKSUMS],
            unpacked_size=230_000_000,
        ),
    )
    CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

    def load_split(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """Return images (N, 3, 96, 96) uint8 and labels (N,)."""
        if split == "val":
            return None
        pixels, labels = self.folder / f"{split}_X.bin", self.folder / f"{split}_y.bin"
        try:
            count = labels.stat().st_size
            images = map_bytes(pixels, 0, count * IMAGE_BYTES).view(count, 3, 96, 96)
            numbers = map_bytes(labels, 0, count)
        except OSError as error:
            raise DataError(
                f"paths.data={self.path}: {self.folder} is damaged ({error}); remove its files to download "
                "them again"
            ) from error
        return images.transpose(
            2, 3
        ).contiguous(), numbers.long() - 1  # files hold columns, and labels from 1
