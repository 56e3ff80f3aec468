"""Base class of data modules of images: preprocessing, image cache, statistics of the channels."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from project.datamodules.base import LOAD_SPLIT_REMEDY, Split, SupervisedDataModule
from project.datamodules.loading.augmentation import Augmentation
from project.datamodules.loading.loader import Images, MemoryImages
from project.datamodules.storage.image_cache import ImageCache
from project.datamodules.storage.preprocessing import (
    PREPROCESSING_VERSION,
    as_pixels,
    channel_statistics,
    check_images,
    per_channel,
    preprocess,
)
from project.datamodules.targets import as_targets
from project.errors import InputError
from project.runtime.bounds import Range, check_arguments


class ImageDataModule(SupervisedDataModule):
    """Base class of data modules of images.

    A subclass implements `load_split`, and `prepare_data` if it downloads files. The test split is the
    official one where it exists.

    Args:
        input_shape: (C, H, W) of an image after preprocessing; the network is built for this shape.
        mean: mean of each channel, or one value for all, on the scale [0, 1] (default null: computed from
            the training images).
        std: standard deviation of each channel, in the same form as `mean`.
        resize: side or (H, W) to which images are scaled before training (default null: no scaling).
        grayscale: convert color images to gray before training (default false).
        channels_last: store images and batches in channels-last memory format (default false).
        image_cache: folder of decoded images that later runs reuse, see `ImageCache` (default null: none).
        augment: augmentation of training batches (default null: none).
        base: arguments of `SupervisedDataModule`.

    Raises:
        InputError: an argument is out of its range; in `setup`, the images do not fit `input_shape` or
            `num_classes`.
    """

    INPUT_NDIM: ClassVar[int | None] = 3
    input_shape: tuple[int, int, int]
    is_mapped = False  # True if `load_split` returns memory-mapped images

    def __init__(
        self,
        *,
        input_shape: Annotated[Sequence[int], Range(1)],
        mean: Annotated[Sequence[float], Range(0, 1)] | None = None,
        std: Annotated[Sequence[float], Range(above=0)] | None = None,
        resize: int | Sequence[int] | None = None,
        grayscale: bool | None = False,
        channels_last: bool = False,
        image_cache: str | None = None,
        augment: Augmentation | None = None,
        **base: Any,
    ) -> None:
        check_arguments("data", ImageDataModule, locals())
        if len(input_shape) != 3:
            raise InputError(f"data.input_shape={list(input_shape)}: give [channels,height,width]")
        super().__init__(input_shape=input_shape, **base)
        self.mean = per_channel("mean", mean, input_shape[0])
        self.std = per_channel("std", std, input_shape[0])
        self._given_mean, self._given_std = mean is not None, std is not None
        self.resize = resize
        self.grayscale = grayscale
        self.channels_last = channels_last
        self.image_cache = ImageCache(Path(image_cache) if image_cache else None)
        self.augment = augment

    @abstractmethod
    def load_split(self, split: Split) -> Images | tuple[Tensor, Tensor] | None:
        """Return the images of a split.

        Returns:
            Images (N, C, H, W) uint8 and class indices (N,), or preprocessed `Images`. None for `val` if
            validation images are to be taken from the training images.
        """

    def cache_key(self, split: Split) -> Mapping[str, Any] | None:
        """Return all that the images of `load_split` depend on, in plain values; None disables the cache."""
        return None

    def pixels(self, split: Split, positions: Tensor) -> Tensor:
        """Return images (n, C, H, W) uint8 before normalization, on the CPU.

        `positions` (n,) count the split's images in evaluation order on one device.
        """
        images, rows = self._subsets[split]
        return images.sample(rows[positions])

    def training_sample(self, size: int = 5000) -> Tensor:
        """Return at most `size` normalized training images (n, C, H, W) float32, on the device.

        The images are evenly spaced rows, the same on all ranks. Networks compute initial weights from this
        sample.
        """
        assert self.mean is not None
        assert self.std is not None
        pixels = self._spaced_pixels(size).to(self._rank_and_device()[2])
        mean, std = (torch.tensor(values, device=pixels.device) for values in (self.mean, self.std))
        return (pixels / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)

    def load_inputs(self, split: Split) -> Images | None:
        """Load, preprocess and check a split; use the image cache if the split has a key."""
        title = self._title(split)
        images: Images
        if (key := self.cache_key(split)) is not None:
            images = self.image_cache.load(
                f"{self.name}-{split}-{'x'.join(map(str, self.input_shape))}",
                {**key, "preprocessing": PREPROCESSING_VERSION, "shape": self.input_shape},
                lambda: self._preprocess(self.load_split(split), title),
                channels_last=self.channels_last,
            )
        elif (loaded := self.load_split(split)) is None:
            return None
        elif isinstance(loaded, Images):
            images = loaded
        else:
            pixels, labels = self._preprocess(loaded, title)
            is_mapped = self.is_mapped and pixels is loaded[0]
            images = MemoryImages(pixels, labels, channels_last=self.channels_last, is_mapped=is_mapped)
        check_images(images, self.input_shape, self.num_classes, title, self.target_type)
        return images

    def _preprocess(self, loaded: Any, title: str) -> tuple[Tensor, Tensor]:
        """Check the value that `load_split` returned, and preprocess it."""
        if not isinstance(loaded, tuple) or len(loaded) != 2:
            raise InputError(f"data: {title} have no labels; {LOAD_SPLIT_REMEDY}")
        pixels = as_pixels(loaded[0], title)
        labels = as_targets(loaded[1], len(pixels), title, self.target_type)
        side = self.input_shape[1:] if self.resize is not None else None
        return preprocess(pixels, gray=bool(self.grayscale), side=side), labels

    def _measure_inputs(self, sample: int = 10_000) -> None:
        """Compute mean and std from at most `sample` training images, unless they are configured."""
        if "train" not in self._subsets:
            self._set_up("train")
        measured = [channel_statistics(channel) for channel in self._spaced_pixels(sample).unbind(1)]
        if self.mean is None:
            self.mean = [mean for mean, _ in measured]
        if self.std is None:
            self.std = [max(std, 1e-3) for _, std in measured]

    def _spaced_pixels(self, size: int) -> Tensor:
        images, rows = self._subsets["train"]
        return images.sample(rows[torch.linspace(0, len(rows) - 1, min(size, len(rows))).long()])

    @property
    def _augmentation(self) -> Augmentation | None:
        return self.augment
