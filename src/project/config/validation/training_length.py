"""How many images and steps a training has, where that is known before any image is read."""

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from project.datamodules.storage.class_folders import class_folders, find_layout, training_files
from project.errors import InputError

MODULES = "project.datamodules."


class DataSet(NamedTuple):
    """What is known of a data set of ours.

    Args:
        name: as in `data=…`.
        images: for training, before validation images are cut from them; None if too many to count.
        shape: (C, H, W) of its images as they are in the files; None if it is configured, or read off them.
        classes: number of its classes; None if it is configured.
        validates: it has validation images of its own.
    """

    name: str
    images: int | None
    shape: tuple[int, int, int] | None
    classes: int | None
    validates: bool = False


FIXED: Mapping[str, DataSet] = {
    f"{MODULES}mnist.MNIST": DataSet("mnist", 60_000, (1, 28, 28), 10),
    f"{MODULES}cifar10.CIFAR10": DataSet("cifar10", 50_000, (3, 32, 32), 10),
    f"{MODULES}digits.Digits": DataSet("digits", 1_438, (1, 28, 28), 10),
}
SYNTHETIC = f"{MODULES}synthetic.Synthetic"
IMAGE_FOLDER = f"{MODULES}image_folder.ImageFolder"


def data_set(right: Mapping[str, Any]) -> DataSet | None:
    """Tell what is known of the configured data set; None of one that is not ours.

    Args:
        right: values that are right by themselves, by dotted key.
    """
    target = right.get("data._target_")
    if target == SYNTHETIC:
        size = right.get("data.train_size")
        return DataSet("synthetic", size if isinstance(size, int) else None, None, None)
    if target == IMAGE_FOLDER and isinstance(right.get("data.path"), str):
        return _image_folder(right)
    return FIXED.get(str(target))


def images_of(share: float, count: int) -> int:
    """Number of images that `share` means: a fraction of `count` below 1, or a whole number."""
    return math.floor(share * count + 0.5) if share < 1 else int(share)


def _image_folder(right: Mapping[str, Any]) -> DataSet | None:
    counted = _count(right["data.path"])
    if counted is None:
        return None
    images, classes, validates, tests = counted
    test_size = right.get("data.test_size")
    if images is not None and not tests and isinstance(test_size, int | float):
        images = max(0, images - images_of(test_size, images))
    return DataSet("image_folder", images, None, classes, validates)


@cache  # several checks ask, and all jobs of a sweep
def _count(path: str) -> tuple[int | None, int, bool, bool] | None:
    """Training images, classes, whether folders to validate and to test are there; None without images."""
    root = Path(path)
    try:
        folders = class_folders(root)
        count = len(training_files(root))
        splits = find_layout(root).splits
    except (InputError, OSError):
        return None
    return count, len(folders), "val" in splits, "test" in splits


class Length(NamedTuple):
    """How long a training is.

    Args:
        images: that are trained on, None if not known.
        batches: of an epoch, None if not known.
        epochs: None if they have no limit, or are not known.
        steps: of the optimizer in all, None likewise.
    """

    images: int | None
    batches: int | None
    epochs: int | None
    steps: int | None


def training_images(right: Mapping[str, Any], found: DataSet | None) -> int | None:
    """Images left to train on, None if that is not known."""
    if found is None or found.images is None:
        return None
    if found.validates:
        return found.images
    folds, share = right.get("data.folds"), right.get("data.val_size")
    if folds is not None:
        return found.images - found.images // folds
    if not isinstance(share, int | float):
        return None
    return found.images - images_of(share, found.images)


def length(right: Mapping[str, Any]) -> Length:
    """Tell how long the configured training is, as far as that is known.

    Args:
        right: values that are right by themselves, by dotted key.
    """
    images = training_images(right, data_set(right))
    size, limit = right.get("data.batch_size"), right.get("trainer.limit_train_batches", 1.0)
    batches = None
    if images is not None and images > 0 and isinstance(size, int):
        batches = -(-images // size)
        if right.get("trainer.overfit_batches"):
            batches = None
        elif isinstance(limit, int) or limit > 1:
            batches = min(batches, int(limit))
        else:
            batches = max(1, int(batches * limit))
    epochs = right.get("trainer.max_epochs")
    epochs = epochs if isinstance(epochs, int) and epochs > 0 else None
    per_step, most = right.get("trainer.accumulate_grad_batches"), right.get("trainer.max_steps")
    most = most if isinstance(most, int) and most > 0 else None
    steps = most
    if batches is not None and isinstance(per_step, int):
        per_epoch = -(-batches // per_step)
        if epochs is not None:
            steps = min(most or math.inf, per_epoch * epochs)  # type: ignore[assignment]
        if most is not None:
            epochs = min(epochs or 10**12, -(-most // per_epoch))
    elif most is not None:
        epochs = None
    return Length(images, batches, epochs, steps)
