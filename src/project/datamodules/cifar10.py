"""CIFAR-10: 50,000 training and 10,000 test images of ten classes, 32×32, colour."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10 as TorchvisionCIFAR10

from project.datamodules.base import ImageDataModule, Split
from project.datamodules.download import fetch

FOLDER = Path(TorchvisionCIFAR10.base_folder)
CHECKSUMS = {
    **dict(TorchvisionCIFAR10.train_list),
    **dict(TorchvisionCIFAR10.test_list),
    str(TorchvisionCIFAR10.meta["filename"]): str(TorchvisionCIFAR10.meta["md5"]),
}
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class CIFAR10(ImageDataModule):
    """CIFAR-10 (Krizhevsky 2009) with its official test split, downloaded by torchvision.

    Args:
        path: folder of the data sets; the files lie in `cifar-10-batches-py` below it.
        base: see `ImageDataModule`.
    """

    def __init__(self, path: str, **base: Any) -> None:
        super().__init__(name="cifar10", **base)
        self.path = Path(path)

    @property
    def class_names(self) -> list[str]:
        """Names of the ten classes."""
        return CLASSES

    def prepare_data(self) -> None:
        """Download the files unless they are there and undamaged."""
        fetch("cifar10", self.path, FOLDER, CHECKSUMS, lambda root: TorchvisionCIFAR10(root, download=True))

    def read(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """Return images (N, 3, 32, 32) uint8 and labels (N,)."""
        if split == "val":
            return None
        dataset = TorchvisionCIFAR10(self.path, train=split == "train")
        pixels = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()  # N, 3, 32, 32
        return pixels, torch.tensor(dataset.targets)
