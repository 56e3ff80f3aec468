"""Preprocessing before training, and checks of images, labels, classes and channel statistics."""

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


def check_images(images: Images, shape: tuple[int, int, int], num_classes: int, title: str) -> None:
    """Check images against the configured shape (C, H, W) and number of classes.

    `title` names the images in messages, such as "the train images of data=mnist".

    Raises:
        InputError: shape or labels do not fit, or there are no images.
    """
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
    """Convert images to a tensor (N, C, H, W) uint8.

    Raises:
        InputError: `images` is not an array or tensor of this shape and type.
    """
    expected = "uint8 of shape [N, C, H, W]"
    given = _as_tensor(images, f"{title} are not pixels", expected, f"return {expected}")
    if given.dtype == torch.uint8 and given.ndim == 4:
        return given
    raise InputError(
        f"data: {title} are not 8-bit pixels (expected {expected}, got {describe(given)}); return "
        "integers from 0 to 255 as uint8"
    )


def as_class_indices(labels: Any, count: int, title: str) -> Tensor:
    """Convert integers or booleans (count,) or (count, 1) to class indices (count,) long.

    Raises:
        InputError: `labels` has another shape or type.
    """
    given = _as_tensor(
        labels, f"labels of {title} are not numbers", f"{count} integers", "return a tensor of class indices"
    )
    is_integer = not given.is_floating_point() and not given.is_complex()
    if is_integer and given.shape in ((count,), (count, 1)):
        return given.reshape(count).long()
    remedy = "return one label for each image"
    if given.ndim == 2 and len(given) == count and given.shape[1] > 1:
        is_one_hot = bool(((given != 0).sum(1) == 1).all())
        remedy = "return labels.argmax(1)" if is_one_hot else "multi-label targets are not supported"
    elif not is_integer:
        remedy = "return labels.long() if they are class indices; real values are not supported"
    raise InputError(
        f"data: labels of {title} are not class indices (expected integers of shape [{count}], got "
        f"{describe(given)}); {remedy}"
    )


def _as_tensor(value: Any, problem: str, expected: str, remedy: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"data: {problem} (expected {expected}, got {describe(value)}); {remedy}") from error


def describe(value: Any) -> str:
    """Return dtype and shape of a tensor, or the type of another value, for messages."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} of shape {list(value.shape)}"


def check_classes(trained: Sequence[str], found: Sequence[str], source: str, remedy: str) -> None:
    """Check that class names equal those of training: renamed or added class folders shift the labels.

    Args:
        trained: class names during training, in the order of the labels.
        found: class names of the data, in the order of the labels.
        source: key and value that select the data, such as `data.path=photos`.
        remedy: end of the message.

    Raises:
        InputError: the names differ.
    """
    trained, found = [printable(name) for name in trained], [printable(name) for name in found]
    if trained == found:
        return
    if len(trained) != len(found):
        raise InputError(
            f"{source}: {len(found)} classes, but the network was trained on {len(trained)}; {remedy}"
        )
    index = next(index for index, name in enumerate(trained) if found[index] != name)
    raise InputError(
        f"{source}: other classes than those of training: class {index} is {found[index]} (expected "
        f"{trained[index]}); {remedy}"
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
