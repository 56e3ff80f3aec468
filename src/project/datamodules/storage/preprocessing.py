"""Preprocessing before training, and checks of images, labels, classes and channel statistics."""

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from project.datamodules.loading.loader import Images
from project.datamodules.targets import TargetType, as_targets, as_tensor, check_targets, describe
from project.errors import InputError

PREPROCESSING_VERSION = 1  # part of the image cache's key; increase it whenever the result changes


def preprocess(pixels: Tensor, *, gray: bool, side: tuple[int, int] | None) -> Tensor:
    """Convert images (N, C, H, W) uint8 to gray if `gray`, and scale them to `side` (H, W) if given."""
    if gray and pixels.shape[1] == 3:
        pixels = _in_chunks(pixels, to_gray)
    if side is not None and pixels.shape[2:] != side:
        pixels = _in_chunks(pixels, lambda chunk: scale_images(chunk, *side))
    return pixels


def scale_images(pixels: Tensor, height: int, width: int) -> Tensor:
    """Scale images (N, C, H, W) uint8 to (N, C, height, width), bilinear with antialiasing."""
    scaled = F.interpolate(
        pixels.float(), size=(height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return scaled.round().clamp(0, 255).to(torch.uint8)


def to_gray(pixels: Tensor) -> Tensor:
    """Convert images (N, 3, H, W) uint8 to luma (N, 1, H, W) uint8, with the weights of ITU-R BT.601."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (pixels.float() * weights).sum(dim=1, keepdim=True).round().to(torch.uint8)


def channel_statistics(channel: Tensor) -> tuple[float, float]:
    """Return mean and sample standard deviation of uint8 pixels of any shape, on the scale [0, 1]."""
    counts = torch.bincount(channel.flatten(), minlength=256).double()
    values = torch.arange(256).double() / 255
    total = counts.sum()
    mean = (counts * values).sum() / total
    variance = (counts * (values - mean).square()).sum() / (total - 1).clamp(min=1)
    return mean.item(), variance.sqrt().item()


def _in_chunks(pixels: Tensor, change: Callable[[Tensor], Tensor], size: int = 4096) -> Tensor:
    # Converting all images to float32 at once would take four times their memory.
    return torch.cat([change(chunk) for chunk in pixels.split(size)])


def check_images(
    images: Images,
    shape: tuple[int, int, int],
    num_classes: int,
    title: str,
    target_type: TargetType = "class",
) -> None:
    """Check images against the configured shape (C, H, W), and targets against the number of classes.

    `title` names the images in messages, such as "the train images of data=mnist".

    Raises:
        InputError: shape or targets do not fit, or there are no images.
    """
    targets = as_targets(images.labels, len(images.labels), title, target_type)
    if images.shape != shape:
        raise InputError(
            f"data.input_shape={list(shape)}: {title} are {list(images.shape)} (channels, height, width); "
            f"set data.input_shape={list(images.shape)}, or what it follows, data.resize and data.grayscale"
        )
    check_targets(targets, num_classes, title)


def as_pixels(images: Any, title: str) -> Tensor:
    """Convert images to a tensor (N, C, H, W) uint8.

    Raises:
        InputError: `images` is not an array or tensor of this shape and type.
    """
    expected = "uint8 of shape [N, C, H, W]"
    given = as_tensor(images, f"{title} are not pixels", expected, f"return {expected}")
    if given.dtype == torch.uint8 and given.ndim == 4:
        return given
    raise InputError(
        f"data: {title} are not 8-bit pixels (expected {expected}, got {describe(given)}); return "
        "integers from 0 to 255 as uint8"
    )


def per_channel(key: str, values: Sequence[float] | None, channels: int) -> list[float] | None:
    """Return one value of `data.mean` or `data.std` per channel; a single value is repeated.

    Raises:
        InputError: the number of values is neither 1 nor `channels`.
    """
    if values is None:
        return None
    if len(values) not in (1, channels):
        raise InputError(
            f"data.{key}={list(values)}: {len(values)} values for {channels} channels; give one value "
            "per channel, one for all, or null to compute them"
        )
    return [float(value) for value in values] * (channels if len(values) == 1 else 1)


def digest_splits(labels: Sequence[Tensor], files: Sequence[Sequence[str]]) -> str:
    """Return a SHA-256 digest of the labels and files of each split.

    Paths count relative to their common folder, so a data set may be moved.
    """
    digest = hashlib.sha256()
    for numbers, names in zip(labels, files, strict=True):
        above = len(os.path.commonpath([min(names), max(names)])) if names else 0
        digest.update(f"{len(numbers)};".encode() + numbers.numpy().tobytes())
        digest.update("\0".join(name[above:] for name in names).encode(errors="surrogateescape"))
    return digest.hexdigest()
