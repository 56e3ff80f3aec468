"""Kuzushiji-MNIST: 60,000 training and 10,000 test images of cursive Japanese characters, 28×28, gray."""

from pathlib import Path
from typing import ClassVar

from project.datamodules.gzipped_idx import GzippedIdxDataModule, idx_archives

CHECKSUMS = {
    "train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7",
    "train-labels-idx1-ubyte.gz": "e144d726b3acfaa3e44228e80efcd344",
    "t10k-images-idx3-ubyte.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
    "t10k-labels-idx1-ubyte.gz": "7320c461ea6c1c855c0b718fb2a4b134",
}
MIRRORS = ("http://codh.rois.ac.jp/kmnist/dataset/kmnist",)


class KMNIST(GzippedIdxDataModule):
    """Kuzushiji-MNIST (Clanuwat et al. 2018, arXiv 1812.01718) with its official test split, downloaded.

    Args:
        path: folder of the data sets; its subfolder `KMNIST/raw` holds the files, as in torchvision.
        base: arguments of `ImageDataModule`.
    """

    DATASET_FACTS: ClassVar = {"images": 60_000, "shape": (1, 28, 28), "classes": 10, "download": "path"}
    NAME = "kmnist"
    FOLDER = Path("KMNIST/raw")
    CHECKSUMS = CHECKSUMS
    ARCHIVES = idx_archives(MIRRORS, CHECKSUMS, [18_165_135, 29_497, 3_041_136, 5_120])
    CLASSES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
