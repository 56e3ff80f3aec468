"""Small images of a page, and names of images."""

import base64
import io
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from PIL import Image

from project.datamodules.base import Split
from project.datamodules.image_base import ImageDataModule
from project.datamodules.loading.loader import FileImages
from project.errors import InputError
from project.reporting.dataset.scan import Place, to_image
from project.runtime.text import printable

MAX_SIDE = 128
"""Longest side of an image on the page, pixels; larger images are scaled down."""
MAX_LOSSLESS = 64
"""Longest side of images that are encoded without loss, pixels."""
POOLS: Sequence[Split] = ("train", "val", "test")


class Tile(NamedTuple):
    """Image on a page.

    Args:
        address: data URI.
        size: width and height, pixels.
        name: file or number of the image.
        label: class or targets.
    """

    address: str
    size: tuple[int, int]
    name: str
    label: str


class Album:
    """Names, labels and small images of a data set.

    Args:
        data: data module whose splits are set up.
    """

    def __init__(self, data: ImageDataModule) -> None:
        self.data = data

    def file(self, place: Place) -> str:
        """Return the file of an image; empty for images without files."""
        images = self.data.subset(place.split).images
        if not isinstance(images, FileImages):
            return ""
        return str(images.files[place.row])

    def name(self, place: Place) -> str:
        """Return the file of an image relative to the data set, or its split and number."""
        if not (file := self.file(place)):
            return f"{place.split} {place.row}"
        return printable(os.path.relpath(file, self._root))

    @cached_property
    def _root(self) -> str:
        files = [
            os.path.dirname(os.path.abspath(images.files[row]))  # noqa: PTH100 - of many files
            for split in POOLS
            if self.data.count(split)
            for images, rows in [self.data.subset(split)]
            if isinstance(images, FileImages)
            for row in rows[:: max(1, len(rows) // 200)].tolist()
        ]
        common = os.path.commonpath(files)
        return os.path.dirname(common) if len(set(files)) == 1 else common

    def label(self, place: Place) -> str:
        """Return the class of an image, its labels, or its values."""
        target = self.data.subset(place.split).images.labels[place.row]
        return describe_target(self.data, target)

    def tile(self, place: Place) -> Tile | None:
        """Return an image for the page; None if it cannot be read."""
        try:
            pixels = self.data.subset(place.split).images.sample(torch.tensor([place.row]))[0]
        except InputError:
            return None
        image = to_image(pixels.numpy())
        is_lossless = max(image.size) <= MAX_LOSSLESS
        if max(image.size) > MAX_SIDE:
            image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        image.save(stream, "PNG" if is_lossless else "JPEG", optimize=True)
        kind = "png" if is_lossless else "jpeg"
        address = f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
        return Tile(address, image.size, self.name(place), self.label(place))


def describe_target(data: ImageDataModule, target: Any) -> str:
    """Return a target as text: a class, the labels that are set, or values."""
    if data.target_type == "class":
        return str(data.class_names[int(target)])
    values = target.tolist()
    if data.target_type == "multilabel":
        return (
            ", ".join(name for name, value in zip(data.class_names, values, strict=True) if value) or "none"
        )
    return ", ".join(f"{value:.4g}" for value in values)
