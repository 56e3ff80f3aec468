"""CIFAR-100: 50,000 training and 10,000 test images of a hundred classes, 32×32, color."""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from project.datamodules.base import Split
from project.datamodules.cifar10 import load_array_pickle
from project.datamodules.downloads import Archive
from project.datamodules.published import PublishedDataModule
from project.errors import DataError

CHECKSUMS = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
FOLDER = Path("cifar-100-python")
CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea
seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


class CIFAR100(PublishedDataModule):
    """CIFAR-100 (Krizhevsky 2009) with its fine labels and its official test split, downloaded.

    Args:
        path: folder of the data sets; its subfolder `cifar-100-python` holds the files, as in torchvision.
        base: arguments of `ImageDataModule`.
    """

    DATASET_FACTS: ClassVar = {"images": 50_000, "shape": (3, 32, 32), "classes": 100, "download": "path"}
    NAME = "cifar100"
    FOLDER = FOLDER
    CHECKSUMS = CHECKSUMS
    ARCHIVES = (
        Archive(
            "cifar-100-python.tar.gz",
            mirrors=["https://www.cs.toronto.edu/~kriz"],
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            size=169_001_437,
            members=[f"{FOLDER.name}/{name}" for name in CHECKSUMS],
            unpacked_size=160_000_000,
        ),
    )
    CLASSES = tuple(CLASSES.split())

    def load_split(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """Return images (N, 3, 32, 32) uint8 and labels (N,)."""
        if split == "val":
            return None
        self.require_undamaged()  # unpickling can run code
        file = self.folder / split
        batch = load_array_pickle(file)
        if not isinstance(batch, dict) or not {"data", "fine_labels"} <= batch.keys():
            raise DataError(f"paths.data={self.path}: {file} holds no images; remove the file")
        return torch.from_numpy(batch["data"]).view(-1, 3, 32, 32), torch.tensor(batch["fine_labels"])
