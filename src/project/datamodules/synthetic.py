"""Synthetic images of any shape, number and number of classes, for smoke tests and benchmarks."""

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from project.datamodules.base import Split
from project.datamodules.image_base import ImageDataModule
from project.datamodules.storage.preprocessing import scale_images
from project.runtime.bounds import Range
from project.runtime.seeding import generator


class Synthetic(ImageDataModule):
    """Smooth random patterns, one per class, with Gaussian noise added to each image.

    Args:
        train_size: number of training images, including those for validation (default 2048).
        test_size: number of test images (default 512).
        noise: standard deviation of the noise, as a fraction of the pixel range (default 0.3).
        pattern_seed: seed of the patterns and the noise (default 0).
        base: arguments of `ImageDataModule`.
    """

    DATASET_FACTS: ClassVar = {"images": "train_size"}

    def __init__(
        self,
        train_size: Annotated[int, Range(1)] = 2048,
        test_size: Annotated[int, Range(1)] = 512,
        noise: Annotated[float, Range(0)] = 0.3,
        pattern_seed: int = 0,
        **base: Any,
    ) -> None:
        super().__init__(name="synthetic", **base)
        self.sizes = {"train": train_size, "test": test_size}
        self.noise = noise
        self.pattern_seed = pattern_seed

    def load_split(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """Return images (N, C, H, W) uint8 and labels (N,)."""
        if split == "val":
            return None
        channels, height, width = self.input_shape
        draws = generator(self.pattern_seed)
        coarse = torch.randint(256, (self.num_classes, channels, 4, 4), generator=draws, dtype=torch.uint8)
        patterns = scale_images(coarse, height, width)  # K, C, H, W
        draws = generator(self.pattern_seed, 1 if split == "train" else 2)
        labels = torch.randint(self.num_classes, (self.sizes[split],), generator=draws)
        images = torch.empty((len(labels), *self.input_shape), dtype=torch.uint8)
        for part, classes in zip(images.split(4096), labels.split(4096), strict=True):
            noise = torch.randn(part.shape, generator=draws) * (255 * self.noise)
            part.copy_((patterns[classes] + noise).round().clamp(0, 255))
        return images, labels
