"""Data modules as users write them."""

import lightning as L
import torch
from torch import Tensor

from project.datamodules.image_base import ImageDataModule

CONFIG_TARGETS = ("HalfWhiteImages", "PlainDataModule", "NoArgumentDataModule")
NUM_CLASSES = 2


class HalfWhiteImages(ImageDataModule):
    """Images with a white left half (class 0) or right half (class 1); the constructor has default shapes."""

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


class PlainDataModule(L.LightningDataModule):
    """LightningDataModule that is not an `ImageDataModule`, and accepts any argument."""

    def __init__(self, input_shape=(1, 8, 8), num_classes=2, **more) -> None:
        super().__init__()


class NoArgumentDataModule(PlainDataModule):
    """LightningDataModule without arguments."""

    def __init__(self) -> None:
        super().__init__()
