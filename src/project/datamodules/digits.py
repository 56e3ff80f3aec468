"""Digits: 1,797 images by 13 writers, included in the package, scaled from 8×8 to 28×28.

The images are the test set of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, UCI
Machine Learning Repository, CC BY 4.0), as in scikit-learn's `load_digits`.
"""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from project.datamodules.base import Split
from project.datamodules.image_base import ImageDataModule
from project.datamodules.splits import split_size, stratified_split
from project.datamodules.storage.preprocessing import scale_images
from project.runtime.seeding import generator

TEST_FRACTION = 0.2
MAX_VALUE = 16  # of a pixel
SIDE = 28


class Digits(ImageDataModule):
    """Handwritten digits without a download; a fixed, stratified 20 % of the images is the test split.

    Args:
        input_shape: see `ImageDataModule` (default [1, 28, 28]); other shapes need `resize`.
        num_classes: 10.
        base: arguments of `ImageDataModule`.
    """

    DATASET_FACTS: ClassVar = {"images": 1_438, "shape": (1, 28, 28), "classes": 10}

    def __init__(
        self, *, input_shape: Sequence[int] = (1, 28, 28), num_classes: int = 10, **base: Any
    ) -> None:
        super().__init__(name="digits", input_shape=input_shape, num_classes=num_classes, **base)

    def load_split(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """Return images (N, 1, 28, 28) uint8 and labels (N,)."""
        if split == "val":
            return None
        with files(__package__).joinpath("digits.npz").open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            images = torch.from_numpy(arrays["images"])[:, None]  # N, 1, 8, 8; 0 to MAX_VALUE
            labels = torch.from_numpy(arrays["labels"]).long()
        train, test = stratified_split(labels, split_size(TEST_FRACTION, len(labels)), generator(0))
        rows = test if split == "test" else train
        pixels = (images[rows].float() * (255 / MAX_VALUE)).round().to(torch.uint8)
        return scale_images(pixels, SIDE, SIDE), labels[rows]
