"""Data sets as users write them."""

import lightning as L
import torch
from torch import Tensor

from project.datamodules.base import ImageDataModule

CONFIG_TARGETS = ("Halves", "Plain", "Fixed")
NUM_CLASSES = 2


class Halves(ImageDataModule):
    """Images whose left or right half is white, which is their class; the constructor knows their shape."""

    def __init__(self, input_shape=(1, 8, 8), num_classes=NUM_CLASSES, count=64, **base) -> None:
        super().__init__(name="halves", input_shape=input_shape, num_classes=num_classes, **base)
        self.size = count

    def load_split(self, split) -> tuple[Tensor, Tensor] | None:
        if split == "val":
            return None
        labels = torch.arange(self.size) % 2
        images = torch.zeros(self.size, *self.input_shape, dtype=torch.uint8)
        images[labels == 0, :, :, :4] = 255
        images[labels == 1, :, :, 4:] = 255
        return images, labels


class Plain(L.LightningDataModule):
    """One of Lightning's, which takes what a configuration gives."""

    def __init__(self, input_shape=(1, 8, 8), num_classes=2, **more) -> None:
        super().__init__()


class Fixed(Plain):
    """The same without any arguments."""

    def __init__(self) -> None:
        super().__init__()
