"""MNIST: 60,000 training and 10,000 test images of handwritten digits, 28×28, gray."""

from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.datasets import MNIST as TorchvisionMNIST

from project.datamodules.base import ImageDataModule, Split
from project.datamodules.download import fetch

FOLDER = Path("MNIST/raw")
CHECKSUMS = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class MNIST(ImageDataModule):
    """MNIST (LeCun et al. 1998) with its official test split, downloaded by torchvision.

    Args:
        path: folder of the data sets; the files lie in `MNIST/raw` below it, as torchvision wants them.
        base: see `ImageDataModule`.
    """

    def __init__(self, path: str, **base: Any) -> None:
        super().__init__(name="mnist", **base)
        self.path = Path(path)

    def prepare_data(self) -> None:
        """Download the files unless they are there and undamaged."""
        fetch("mnist", self.path, FOLDER, CHECKSUMS, lambda root: TorchvisionMNIST(root, download=True))

    def read(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """Return images (N, 1, 28, 28) uint8 and labels (N,)."""
        if split == "val":
            return None
        dataset = TorchvisionMNIST(self.path, train=split == "train")
        return dataset.data[:, None], dataset.targets.long()
