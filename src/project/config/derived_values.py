"""Values that follow from others: resolvers such as `${image_shape:…}`, constructor defaults, absolute paths.

- Resolvers compute facts of the data set, such as the shape of its images after resizing.
- A YAML file may leave out keys that other groups refer to if the constructor has defaults for them.
- Relative paths start from the working directory of the command, even with `hydra.job.chdir=true`.
"""

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, __version__, open_dict

from project.config import allowed_targets
from project.config.source_index import Signature, signature_of
from project.datamodules.storage.class_folders import class_folders, survey
from project.errors import InputError
from project.runtime import secrets
from project.runtime.process import command_state
from project.runtime.yaml_files import raw_child

Size = int | Sequence[int] | None
PATHS = re.compile(
    r"paths\.(?!run$)\w+|ckpt_path|(data|model)\.(\w+_)?(path|root|dir|folder|file|weights|image_cache)"
)
"""Keys whose values are paths."""
GROUP_DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "data": ("input_shape", "num_classes", "batch_size", "val_size"),
    "trainer": (
        *("accelerator", "devices", "num_nodes", "precision", "max_epochs", "max_steps", "max_time"),
        *("limit_val_batches", "accumulate_grad_batches", "gradient_clip_val"),
    ),
}
"""Arguments that other groups refer to, filled in from the constructor if the YAML file lacks them."""


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
    for resolver in (image_shape, folder_shape, folder_classes, portion):
        register_one(resolver.__name__, resolver, replace=True)


def complete(config: DictConfig, hydra: DictConfig | None = None) -> None:
    """Fill in missing values of a configuration; existing values stay.

    Args:
        config: composed configuration, changed in place.
        hydra: Hydra's own node, if the configuration does not contain it [None].

    Raises:
        InputError: the class of the data set does not derive from `ImageDataModule`.
    """
    hydra = config.get("hydra") or hydra
    command_state.folder = Path(hydra.runtime.cwd) if hydra is not None and hydra.job.chdir else None
    if hydra is not None and hydra.job.chdir:
        _make_paths_absolute(config, Path(hydra.runtime.cwd))
    for group, keys in GROUP_DEFAULTS.items():
        node = raw_child(config, group)
        if not isinstance(node, DictConfig):
            continue
        there = set(node)  # `in` is false for a value of ???
        missing = [key for key in keys if key not in there]
        if missing and isinstance(target := raw_child(node, "_target_"), str) and "${" not in target:
            defaults = _defaults(target, group, missing)
            with open_dict(node):
                node.update({key: defaults[key] for key in missing if key in defaults})


def _make_paths_absolute(config: DictConfig, start: Path) -> None:
    for group in ("", "paths", "data", "model"):
        node = raw_child(config, group) if group else config
        for name in map(str, node) if isinstance(node, DictConfig) else ():
            value = raw_child(node, name)
            if not PATHS.fullmatch(f"{group}.{name}".lstrip(".")) or not isinstance(value, str) or not value:
                continue
            is_name = name.endswith("weights") and not (start / value).exists()  # a name of torchvision
            if "${" not in value and "://" not in value and value != "???" and not is_name:
                node[name] = str(start / value)


def _defaults(target: str, group: str, missing: Sequence[str]) -> Mapping[str, Any]:
    """Return the defaults of a constructor, inherited ones included.

    A data set is imported if its source does not give all missing defaults, to check its base class.
    """
    found = signature_of(target)
    known = found.defaults if isinstance(found, Signature) else {}
    plain = {"_target_": target}
    is_refused = next(allowed_targets.refusals(plain, group), None) is not None  # reported by another check
    if group == "data" and not is_refused and not all(key in known for key in missing):
        allowed_targets.confirm(plain, group)
        module, _, name = target.rpartition(".")
        require_image_data(getattr(import_module(module), name), target)
    return known


def require_image_data(made: Any, target: str) -> None:
    """Refuse a data set whose class does not derive from `ImageDataModule`.

    Raises:
        InputError: the class has another base class.
    """
    from project.datamodules.base import ImageDataModule  # imports torch, as the class itself does

    if not (isinstance(made, type) and issubclass(made, ImageDataModule)):
        kind = "a LightningDataModule" if hasattr(made, "train_dataloader") else "another class"
        raise InputError(
            f"data._target_={target}: not usable for training (expected a class derived from "
            f"{ImageDataModule.__module__}.{ImageDataModule.__name__}, got {kind}); derive it from "
            "ImageDataModule and implement load_split(split), as the README shows"
        )
