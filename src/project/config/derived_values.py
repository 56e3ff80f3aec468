"""Values that follow from others: resolvers such as `${image_shape:…}`, constructor defaults, absolute paths.

- Resolvers compute facts of the data set, such as the shape of its images after resizing.
- A YAML file may leave out keys that other groups refer to if the constructor has defaults for them.
- Relative paths start from the working directory of the command, even with `hydra.job.chdir=true`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, __version__, open_dict

from project.config import parts
from project.config.source_index import Signature, signature_of
from project.config.validation.command_request import overrides_of
from project.config.validation.declared_keys import declared_values
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


def run_name(choices: Mapping[str, str], *, _root_: DictConfig) -> str:
    """Return the default name of a run: options of the used groups task, model, data and optim.

    Args:
        choices: option of each group.
    """
    used = parts.referenced_groups(_root_) | {"task", "data"}
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
    for resolver in (image_shape, folder_shape, folder_classes, portion, run_name):
        register_one(resolver.__name__, resolver, replace=True)


def complete(config: DictConfig, hydra: DictConfig | None = None) -> None:
    """Fill in missing values of a configuration, and remove groups that the run does not use.

    Args:
        config: composed configuration, changed in place.
        hydra: Hydra's own node, if the configuration does not contain it [None].
    """
    hydra = config.get("hydra") or hydra
    if hydra is not None:
        overridden = frozenset(text.partition("=")[0].lstrip("+") for text in overrides_of(hydra))
        parts.drop_former_arguments(config, declared_values(config, hydra), overridden)
    parts.drop_unused_groups(config)
    command_state.folder = Path(hydra.runtime.cwd) if hydra is not None and hydra.job.chdir else None
    if hydra is not None and hydra.job.chdir:
        _make_paths_absolute(config, Path(hydra.runtime.cwd))
    for group, keys in GROUP_DEFAULTS.items():
        node = raw_child(config, group)
        if not isinstance(node, DictConfig):
            continue
        there = set(node)  # `in` is false for a value of ???
        target = raw_child(node, "_target_")
        found = signature_of(target) if isinstance(target, str) and "${" not in target else None
        if isinstance(found, Signature):
            missing = {key: found.defaults[key] for key in keys if key in found.defaults and key not in there}
            with open_dict(node):
                node.update(missing)


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
