"""Preprocessing of sets of images before training, and checks of images, labels, classes and statistics."""

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from project.datamodules.loading.loader import Images
from project.errors import InputError
from project.runtime.text import printable

PREPROCESSING_VERSION = 1  # part of the key of cached images; to be raised when other pixels result


def preprocess(pixels: Tensor, *, gray: bool, side: tuple[int, int] | None) -> Tensor:
    """Convert (N, C, H, W) uint8 to gray and scale it to `side` (H, W), where that changes it."""
    if gray and pixels.shape[1] == 3:
        pixels = _in_chunks(pixels, to_gray)
    if side is not None and pixels.shape[2:] != side:
        pixels = _in_chunks(pixels, lambda chunk: scale_images(chunk, *side))
    return pixels


def scale_images(pixels: Tensor, height: int, width: int) -> Tensor:
    """Scale (N, C, H, W) uint8 to (N, C, height, width), bilinear, antialiased."""
    scaled = F.interpolate(
        pixels.float(), size=(height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return scaled.round().clamp(0, 255).to(torch.uint8)


def to_gray(pixels: Tensor) -> Tensor:
    """Return the luma of (N, 3, H, W) uint8 as (N, 1, H, W), weighted as in ITU-R BT.601."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (pixels.float() * weights).sum(dim=1, keepdim=True).round().to(torch.uint8)


def channel_statistics(channel: Tensor) -> tuple[float, float]:
    """Return mean and sample standard deviation of uint8 pixels, on the scale [0, 1]."""
    counts = torch.bincount(channel.flatten(), minlength=256).double()
    values = torch.arange(256).double() / 255
    total = counts.sum()
    mean = (counts * values).sum() / total
    variance = (counts * (values - mean).square()).sum() / (total - 1).clamp(min=1)
    return mean.item(), variance.sqrt().item()


def _in_chunks(pixels: Tensor, change: Callable[[Tensor], Tensor], size: int = 4096) -> Tensor:
    # Floats of a whole set would take four times its memory.
    return torch.cat([change(chunk) for chunk in pixels.split(size)])


def check_images(images: Images, shape: tuple[int, int, int], num_classes: int, title: str) -> None:
    """Check images, called `title`, against the configured shape (C, H, W) and number of classes."""
    labels = as_class_indices(images.labels, len(images.labels), title)
    if images.shape != shape:
        raise InputError(
            f"data.input_shape={list(shape)}: {title} are {list(images.shape)} (channels, height, width); "
            f"set data.input_shape={list(images.shape)}, or what it follows, data.resize and data.grayscale"
        )
    if not len(labels):
        raise InputError(f"data: there are none of {title}; give at least one")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= num_classes:
        raise InputError(
            f"data.num_classes={num_classes}: labels of {title} run from {lowest} to {highest}; "
            f"set data.num_classes={highest + 1}, or correct the files"
        )


def as_pixels(images: Any, title: str) -> Tensor:
    """Return images as a tensor (N, C, H, W) uint8."""
    expected = "uint8 of shape [N, C, H, W]"
    given = _as_tensor(images, f"{title} are no pixels", expected, f"return {expected}")
    if given.dtype == torch.uint8 and given.ndim == 4:
        return given
    raise InputError(
        f"data: {title} are no 8-bit pixels (expected {expected}, got {describe(given)}); return whole "
        "numbers from 0 to 255 as uint8"
    )


def as_class_indices(labels: Any, count: int, title: str) -> Tensor:
    """Return one class index per image, (count,) long, from integers or booleans (count,) or (count, 1)."""
    given = _as_tensor(
        labels, f"labels of {title} are no numbers", f"{count} integers", "return a tensor of class indices"
    )
    is_integer = not given.is_floating_point() and not given.is_complex()
    if is_integer and given.shape in ((count,), (count, 1)):
        return given.reshape(count).long()
    remedy = "return one label for each image"
    if given.ndim == 2 and len(given) == count and given.shape[1] > 1:
        is_one_hot = bool(((given != 0).sum(1) == 1).all())
        remedy = (
            "return labels.argmax(1)" if is_one_hot else "several labels for each image are not supported"
        )
    elif not is_integer:
        remedy = "return labels.long() if they are class indices; real values are not supported"
    raise InputError(
        f"data: labels of {title} are no class indices (expected integers of shape [{count}], got "
        f"{describe(given)}); {remedy}"
    )


def _as_tensor(value: Any, problem: str, expected: str, remedy: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"data: {problem} (expected {expected}, got {describe(value)}); {remedy}") from error


def describe(value: Any) -> str:
    """Return type and shape of a tensor, or the type of another value, for messages."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} of shape {list(value.shape)}"


def check_classes(trained: Sequence[str], found: Sequence[str], source: str, remedy: str) -> None:
    """Check that labels mean the same as in training: renamed class folders shift them.

    `trained` and `found` are names of classes in the order of the labels. `source` is the key that chooses
    the data, as in `data.path=photos`, and `remedy` the end of the message.
    """
    trained, found = [printable(name) for name in trained], [printable(name) for name in found]
    if trained == found:
        return
    if len(trained) != len(found):
        raise InputError(
            f"{source}: it has {len(found)} classes, the network was trained on {len(trained)}; {remedy}"
        )
    index = next(index for index, name in enumerate(trained) if found[index] != name)
    raise InputError(
        f"{source}: its classes are not those that the network was trained on: class {index} is "
        f"{found[index]} here and was {trained[index]}; {remedy}"
    )


def per_channel(key: str, values: Sequence[float] | None, channels: int) -> list[float] | None:
    """Return one value of `data.mean` or `data.std` for each channel; a single value stands for all."""
    if values is None:
        return None
    if len(values) not in (1, channels):
        raise InputError(
            f"data.{key}={list(values)}: {len(values)} values for {channels} channels; give one for "
            "each, one for all, or null to compute them"
        )
    return [float(value) for value in values] * (channels if len(values) == 1 else 1)


def digest_splits(labels: Sequence[Tensor], files: Sequence[Sequence[str]]) -> str:
    """Return a digest of which images the splits have, independent of the folder that they lie in."""
    digest = hashlib.sha256()
    for numbers, names in zip(labels, files, strict=True):
        above = len(os.path.commonpath([min(names), max(names)])) if names else 0
        digest.update(f"{len(numbers)};".encode() + numbers.numpy().tobytes())
        digest.update("\0".join(name[above:] for name in names).encode(errors="surrogateescape"))
    return digest.hexdigest()
