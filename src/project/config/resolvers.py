"""Resolvers of the configuration, such as `${image_shape:…}`."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, __version__

from project.config.metrics import best_mode
from project.config.parts import referenced_groups
from project.config.source_index import constant_of
from project.datamodules.storage import arrow_images, tables
from project.datamodules.storage.class_folders import Survey, class_folders, survey, survey_files
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
    return _surveyed_shape(survey(path), resize, grayscale)


def _surveyed_shape(found: Survey, resize: Size, grayscale: bool | None) -> ListConfig:
    if resize is None and len(found.sizes) > 1:
        few = ", ".join(
            f"{height}×{width} as {file}" for (height, width), file in list(found.sizes.items())[:3]
        )
        raise InputError(
            f"data.resize=null: images of {len(found.sizes)} sizes ({few}); set data.resize, e.g. "
            f"data.resize={max(found.sizes)[0]}"
        )
    gray = not found.color if grayscale is None else grayscale
    return image_shape([1 if gray else 3, *next(iter(found.sizes))], resize, gray)


def folder_classes(path: str) -> int:
    """Return the number of class folders."""
    return len(class_folders(Path(path)))


def table_shape(
    table: str, path: str | None, image_column: str, resize: Size, grayscale: bool | None
) -> ListConfig:
    """Return the shape (C, H, W) of the images in a table; as `folder_shape`."""
    files = tables.image_files(table, path, image_column)
    return _surveyed_shape(_survey_of(tuple(files)), resize, grayscale)


def arrow_shape(
    path: str, image_column: str | None, label_column: str | None, resize: Size, grayscale: bool | None
) -> ListConfig:
    """Return the shape (C, H, W) of the images in Arrow or Parquet files; as `folder_shape`."""
    return _surveyed_shape(arrow_images.survey(path, image_column, label_column), resize, grayscale)


def arrow_classes(path: str, image_column: str | None, label_column: str | None) -> int:
    """Return the number of classes in Arrow or Parquet files."""
    return len(arrow_images.class_names(path, image_column, label_column))


@lru_cache(maxsize=8)
def _survey_of(files: tuple[str, ...]) -> Survey:
    return survey_files(list(files))


def table_outputs(table: str, label_columns: Any, split_column: str | None, target_type: str | None) -> int:
    """Return the number of classes, labels or real values in the label columns of a table."""
    return tables.num_outputs(table, label_columns, split_column, target_type)


def table_features(table: str, features: Any, label_columns: Any, split_column: str | None) -> ListConfig:
    """Return the shape (F,) of the vectors of features in a table."""
    return ListConfig([len(tables.feature_columns(table, features, label_columns, split_column))])


def task_targets(task: str) -> str | None:
    """Return the kind of targets that a task needs; None if its class declares none."""
    kind = constant_of(task, "TARGET_TYPE")
    return kind if isinstance(kind, str) else None


def task_monitor(task: str) -> str:
    """Return the validation metric by which a task chooses checkpoints: the first that its class declares."""
    metrics = constant_of(task, "METRICS")
    return f"val/{next(iter(metrics))}" if isinstance(metrics, dict) and metrics else "val/acc"


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
    return "_".join(dict.fromkeys(word for word in words if word != "classification"))


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
    own = (as_called, image_shape, folder_shape, folder_classes, portion, run_name, best_mode)
    for resolver in (
        *own,
        arrow_shape,
        arrow_classes,
        table_shape,
        table_outputs,
        table_features,
        task_targets,
        task_monitor,
    ):
        register_one(resolver.__name__, resolver, replace=True)
