"""Resolvers of the configuration, such as `${image_shape:…}`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import ListConfig, OmegaConf, __version__

from project.datamodules.storage.class_folders import class_folders, survey
from project.errors import InputError
from project.runtime import secrets

Size = int | Sequence[int] | None


def image_shape(native: Sequence[int], resize: Size, grayscale: bool | None) -> ListConfig:
    """Return the shape (C, H, W) of images after resizing and conversion to grayscale."""
    channels, height, width = native
    if resize is not None:
        height, width = _sides(resize)
    return ListConfig([1 if grayscale else channels, height, width])


def folder_shape(path: str, resize: Size, grayscale: bool | None) -> ListConfig:
    """Return the shape (C, H, W) of the images in class folders.

    Raises:
        InputError: they have several sizes, and are not resized.
    """
    found = survey(path)
    if resize is None and len(found.sizes) > 1:
        few = ", ".join(
            f"{height}×{width} as {file}" for (height, width), file in list(found.sizes.items())[:3]
        )
        raise InputError(
            f"data.resize=null: images of {len(found.sizes)} sizes ({few}); set data.resize, e.g. "
            f"data.resize={max(found.sizes)[0]}"
        )
    gray = not found.colour if grayscale is None else grayscale
    return image_shape([1 if gray else 3, *next(iter(found.sizes))], resize, gray)


def folder_classes(path: str) -> int:
    """Return the number of class folders."""
    return len(class_folders(Path(path)))


def portion(share: float, shape: Sequence[int]) -> int:
    """Return a fraction of the shorter side of images (C, H, W), in pixels."""
    return round(share * min(shape[1:]))


def _sides(resize: int | Sequence[int]) -> tuple[int, int]:
    sides = [resize, resize] if isinstance(resize, int) else list(resize)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise InputError(f"data.resize={resize}: give a side in pixels, or [height,width]")
    return sides[0], sides[1]


def register() -> None:
    """Register the resolvers with OmegaConf. Safe to call again."""
    # OmegaConf 2.4 renames the function; the earlier function of the new name was another one.
    register_one: Any = (
        OmegaConf.register_new_resolver if __version__ < "2.4" else OmegaConf.register_resolver
    )
    register_one("oc.env", secrets.env, replace=True)
    for resolver in (image_shape, folder_shape, folder_classes, portion):
        register_one(resolver.__name__, resolver, replace=True)
