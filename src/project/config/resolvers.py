"""Resolvers of the configuration, such as `${image_shape:…}`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, __version__

from project.config.parts import referenced_groups
from project.datamodules.storage.class_folders import class_folders, survey
from project.errors import InputError
from project.runtime import secrets
from project.runtime.process import as_called
from project.runtime.yaml_files import raw_child

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
        InputError: the images have several sizes, and `resize` is None.
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
    """Return a fraction of the shorter image side in pixels, for a shape (C, H, W)."""
    return round(share * min(shape[1:]))


def run_name(choices: Mapping[str, str], *, _root_: DictConfig) -> str:
    """Return the default name of a run: options of the used groups task, model, data and optim.

    Args:
        choices: option of each group.
    """
    used = referenced_groups(_root_) | {"task", "data"}
    words = [_option(group, choices, _root_) for group in ("task", "model", "data", "optim") if group in used]
    return "_".join(word for word in words if word != "classification")


def _option(group: str, choices: Mapping[str, str], root: DictConfig) -> str:
    """Return the option of a group, or the name of its class for a task or data set of another package."""
    node = raw_child(root, group)
    target = raw_child(node, "_target_") if isinstance(node, DictConfig) else None
    if isinstance(target, str) and group in ("task", "data") and not target.startswith("project."):
        return target.rpartition(".")[2]
    return str(choices.get(group))


def _sides(resize: int | Sequence[int]) -> tuple[int, int]:
    sides = [resize, resize] if isinstance(resize, int) else list(resize)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise InputError(f"data.resize={resize}: expected a side in pixels, or [height,width]")
    return sides[0], sides[1]


def register_resolvers() -> None:
    """Register the resolvers with OmegaConf; safe to call again."""
    # OmegaConf 2.4 renames the function; in earlier versions the new name belongs to another function.
    register_one: Any = (
        OmegaConf.register_new_resolver if __version__ < "2.4" else OmegaConf.register_resolver
    )
    register_one("oc.env", secrets.resolve_env, replace=True)
    for resolver in (as_called, image_shape, folder_shape, folder_classes, portion, run_name):
        register_one(resolver.__name__, resolver, replace=True)
