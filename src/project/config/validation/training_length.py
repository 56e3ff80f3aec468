"""Numbers of images, batches and steps of a training, as far as they are known before images are read."""

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from project.config.source_index import constant_of
from project.datamodules.storage.class_folders import class_folders, find_layout, training_files
from project.errors import InputError


class DataFacts(NamedTuple):
    """Facts of a data set that are known before it is read.

    Args:
        images: for training, before validation images are taken from them; None if unknown.
        shape: (C, H, W) of its images as they are in the files; None if unknown.
        classes: number of its classes; None if unknown.
        validates: it has validation images of its own.
        folder: a folder for each class lies there; None for other data sets.
    """

    images: int | None
    shape: tuple[int, int, int] | None
    classes: int | None
    validates: bool = False
    folder: str | None = None


class TrainingLength(NamedTuple):
    """Length of a training.

    Args:
        batches: of an epoch; None if unknown.
        epochs: None if they have no limit, or are unknown.
        steps: optimizer steps in all; None likewise.
    """

    batches: int | None
    epochs: int | None
    steps: int | None


def data_facts(right: Mapping[str, Any]) -> DataFacts | None:
    """Return the facts that the configured data set's class declares as `FACTS`; None if it declares none.

    Args:
        right: values that are right by themselves, by dotted key.
    """
    target = right.get("data._target_")
    declared = constant_of(target, "FACTS") if isinstance(target, str) else None
    if not isinstance(declared, dict):
        return None
    if (key := declared.get("class_folders")) is not None:
        return _of_folder(right, right.get(f"data.{key}"))
    images = declared.get("images")
    if isinstance(images, str):  # the argument that says it
        images = right.get(f"data.{images}")
    return DataFacts(
        images if isinstance(images, int) else None, declared.get("shape"), declared.get("classes")
    )


def num_images(share: float, count: int) -> int:
    """Return the number of images that a share means: a fraction of `count` below 1, or a whole number."""
    return math.floor(share * count + 0.5) if share < 1 else int(share)


def training_images(right: Mapping[str, Any], facts: DataFacts | None) -> int | None:
    """Return the number of images left to train on; None if it is unknown."""
    if facts is None or facts.images is None or facts.validates:
        return facts.images if facts is not None else None
    folds, share = right.get("data.folds"), right.get("data.val_size")
    if folds is not None:
        return facts.images - facts.images // folds
    return facts.images - num_images(share, facts.images) if isinstance(share, int | float) else None


def training_length(right: Mapping[str, Any]) -> TrainingLength:
    """Return the length of the configured training, as far as it is known.

    Args:
        right: values that are right by themselves, by dotted key.
    """
    images = training_images(right, data_facts(right))
    size, limit = right.get("data.batch_size"), right.get("trainer.limit_train_batches", 1.0)
    batches = None
    if images and isinstance(size, int) and not right.get("trainer.overfit_batches"):
        batches = -(-images // size)
        batches = min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))
    epochs, most = _limit(right.get("trainer.max_epochs")), _limit(right.get("trainer.max_steps"))
    per_step = right.get("trainer.accumulate_grad_batches")
    if batches is None or not isinstance(per_step, int):
        return TrainingLength(batches, None if most is not None else epochs, most)
    per_epoch = -(-batches // per_step)
    if most is not None:
        epochs = -(-most // per_epoch) if epochs is None else min(epochs, -(-most // per_epoch))
    steps = [most] if most is not None else []
    steps += [per_epoch * epochs] if epochs is not None else []
    return TrainingLength(batches, epochs, min(steps, default=None))


def _limit(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _of_folder(right: Mapping[str, Any], path: Any) -> DataFacts | None:
    if not isinstance(path, str) or (counted := _count(path)) is None:
        return None
    images, classes, validates, tests = counted
    test_size = right.get("data.test_size")
    if images is not None and not tests and isinstance(test_size, int | float):
        images = max(0, images - num_images(test_size, images))
    return DataFacts(images, None, classes, validates, path)


@cache  # several checks ask, and all jobs of a sweep
def _count(path: str) -> tuple[int, int, bool, bool] | None:
    """Count training images and classes, and find folders to validate and to test; None without images."""
    root = Path(path)
    try:
        folders = class_folders(root)
        count = len(training_files(root))
        splits = find_layout(root).splits
    except (InputError, OSError):
        return None
    return count, len(folders), "val" in splits, "test" in splits
