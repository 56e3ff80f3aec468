"""Whether images and statistics fit what is configured."""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from project.datamodules.loading.images import Images
from project.errors import InputError
from project.runtime.text import shown


def check_images(images: Images, shape: tuple[int, int, int], num_classes: int, what: str) -> None:
    """Check the shape of images, (C, H, W), and their labels.

    Args:
        images: of one split.
        shape: that is configured.
        num_classes: that is configured.
        what: the images, for messages.

    Raises:
        InputError: they do not fit.
    """
    class_indices(images.labels, len(images.labels), what)
    if images.shape != shape:
        raise InputError(
            f"data.input_shape={list(shape)}: {what} are {list(images.shape)} (channels, height, width); "
            f"set data.input_shape={list(images.shape)}, or what it follows, data.resize and data.grayscale"
        )
    if not len(images.labels):
        raise InputError(f"data: there are none of {what}; give at least one")
    lowest, highest = int(images.labels.min()), int(images.labels.max())
    if lowest < 0 or highest >= num_classes:
        raise InputError(
            f"data.num_classes={num_classes}: labels of {what} run from {lowest} to {highest}; "
            f"set data.num_classes={highest + 1}, or mend the files"
        )


def eight_bit_images(images: Any, what: str) -> Tensor:
    """Return images as they are kept: (N, C, H, W) uint8.

    Args:
        images: a tensor, or a NumPy array.
        what: the images, for messages.

    Raises:
        InputError: they are something else, such as floats.
    """
    try:
        given = torch.as_tensor(images)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"data: {what} are no pixels (expected a tensor, got {type(images).__name__}); return uint8 of "
            "shape [N, C, H, W]"
        ) from error
    if given.dtype == torch.uint8 and given.ndim == 4:
        return given
    raise InputError(
        f"data: {what} are no 8-bit pixels (expected uint8 of shape [N, C, H, W], got "
        f"{str(given.dtype).removeprefix('torch.')} of shape {list(given.shape)}); return whole numbers "
        "from 0 to 255 as uint8"
    )


def class_indices(labels: Any, count: int, what: str) -> Tensor:
    """Return labels as they are trained on: one class index for each image, (N,) long.

    Args:
        labels: integers of any type or booleans, (N,) or (N, 1): a tensor, an array or a list.
        count: number of images N.
        what: the images, for messages.

    Raises:
        InputError: they are something else, such as real values or several labels for each image.
    """
    try:
        given = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"data: labels of {what} are no numbers (expected {count} integers, got "
            f"{type(labels).__name__}); return a tensor of class indices"
        ) from error
    whole = not given.is_floating_point() and not given.is_complex()
    if whole and given.shape in ((count,), (count, 1)):
        return given.reshape(count).long()
    remedy = "return one label for each image"
    if given.ndim == 2 and len(given) == count and given.shape[1] > 1:
        one_hot = bool(((given != 0).sum(1) == 1).all())
        remedy = "return labels.argmax(1)" if one_hot else "several labels for each image are not trained"
    elif not whole:
        remedy = "return labels.long() if they are class indices; real values are not trained"
    raise InputError(
        f"data: labels of {what} are no class indices (expected integers of shape [{count}], got "
        f"{str(given.dtype).removeprefix('torch.')} of shape {list(given.shape)}); {remedy}"
    )


def check_classes(learnt: Sequence[str], found: Sequence[str], where: str, remedy: str) -> None:
    """Check that labels mean what a network has learnt: class folders that are renamed shift them.

    Args:
        learnt: names of the classes in the order of the labels, when it was trained.
        found: those of the data.
        where: the data's classes are asked for, for the message: `data.path=photos`.
        remedy: what the user may do, likewise.

    Raises:
        InputError: they are others, or in another order.
    """
    learnt, found = [shown(name) for name in learnt], [shown(name) for name in found]
    if learnt == found:
        return
    if len(learnt) != len(found):
        raise InputError(f"{where}: it has {len(found)} classes, the network learnt {len(learnt)}; {remedy}")
    place = next(place for place, name in enumerate(learnt) if found[place] != name)
    raise InputError(
        f"{where}: its classes are not those that the network learnt: class {place} is {found[place]} here "
        f"and was {learnt[place]}; {remedy}"
    )


def per_channel(key: str, values: Sequence[float] | None, channels: int) -> list[float] | None:
    """Return one value for each channel, where one may stand for all; None if there are none.

    Args:
        key: `mean` or `std`.
        values: of the configuration's `data.mean` or `data.std`.
        channels: number of channels.

    Raises:
        InputError: their number is wrong, or a standard deviation is not above 0.
    """
    if values is None:
        return None
    if len(values) not in (1, channels):
        raise InputError(
            f"data.{key}={list(values)}: {len(values)} values for {channels} channels; give one for "
            "each, one for all, or null to compute them"
        )
    if key == "std" and min(values) <= 0:
        raise InputError(f"data.std={list(values)}: must be above 0")
    return [float(value) for value in values] * (channels if len(values) == 1 else 1)


def digest_of(labels: Sequence[Tensor], files: Sequence[Sequence[str]]) -> str:
    """A digest of which images splits have, wherever they lie by now.

    Args:
        labels: (N,) of each split.
        files: of each split, N of them, or none where images have none of their own.
    """
    digest = hashlib.sha256()
    for numbers, names in zip(labels, files, strict=True):
        above = len(os.path.commonpath([min(names), max(names)])) if names else 0
        digest.update(f"{len(numbers)};".encode() + numbers.numpy().tobytes())
        digest.update("\0".join(name[above:] for name in names).encode(errors="surrogateescape"))
    return digest.hexdigest()
