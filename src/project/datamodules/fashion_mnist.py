"""Fashion-MNIST: 60,000 training and 10,000 test images of clothing, 28×28, gray."""

from pathlib import Path
from typing import ClassVar

from project.datamodules.gzipped_idx import GzippedIdxDataModule, idx_archives

CHECKSUMS = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
MIRRORS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
)


class FashionMNIST(GzippedIdxDataModule):
    """Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747) with its official test split, downloaded.

    Args:
        path: folder of the data sets; its subfolder `FashionMNIST/raw` holds the files, as in torchvision.
        base: arguments of `ImageDataModule`.
    """

    DATASET_FACTS: ClassVar = {"images": 60_000, "shape": (1, 28, 28), "classes": 10, "download": "path"}
    NAME = "fashion_mnist"
    FOLDER = Path("FashionMNIST/raw")
    CHECKSUMS = CHECKSUMS
    ARCHIVES = idx_archives(MIRRORS, CHECKSUMS, [26_421_880, 29_515, 4_422_102, 5_148])
    CLASSES = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
