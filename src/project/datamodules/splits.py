"""Stratified splits of labeled images: sizes, held-out parts and cross-validation folds.

Functions import torch when they are called: checks before a run need only `split_size`.
"""

import math
from typing import TYPE_CHECKING

from project.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def split_size(size: float, count: int) -> int:
    """Return the number of images of a split: `size` itself, or a fraction of `count` if it is below 1.

    Returns -1 for numbers of 1 or more that are not integers.
    """
    if size < 1:
        return math.floor(size * count + 0.5)
    return size if isinstance(size, int) else -1


def stratified_split(labels: "Tensor", size: int, generator: "torch.Generator") -> tuple["Tensor", "Tensor"]:
    """Split the rows of labels (N,) into two parts with nearly equal class frequencies.

    Returns:
        Row numbers of the first part (N - size,) and of the second (size,), both ascending.

    Raises:
        InputError: `size` leaves no row for the first part.
    """
    import torch

    count = len(labels)
    if not 0 <= size < count:
        raise InputError(
            f"data: cannot take {size} of {count} images for another split; choose 0 to {count - 1}"
        )
    # Evenly spaced rows of the list sorted by class take `size` images, a rounded share of each class.
    spaced = (torch.arange(size) * count + count // 2) // max(1, size)
    return _partition(count, _shuffled_by_class(labels, generator)[spaced])


def stratified_fold(
    labels: "Tensor", folds: int, fold: int, generator: "torch.Generator"
) -> tuple["Tensor", "Tensor"]:
    """Split the rows of labels (N,) for cross-validation; class counts of two folds differ by at most one.

    Returns:
        Row numbers of all other folds and of fold number `fold`, both ascending.

    Raises:
        InputError: there are fewer rows than folds.
    """
    count = len(labels)
    if not 2 <= folds <= count:
        raise InputError(f"data.folds={folds}: choose 2 to {count}, the number of training images")
    return _partition(count, _shuffled_by_class(labels, generator)[fold::folds])


def split_validation(
    labels: "Tensor", val_size: float, folds: int | None, fold: int, split_seed: int
) -> tuple["Tensor", "Tensor"]:
    """Split the rows of labels (N,) into training and validation rows; arguments as in `ImageDataModule`.

    Raises:
        InputError: `val_size` or `folds` does not fit the number of labels.
    """
    from project.runtime.seeding import generator  # imports torch

    if folds is not None:
        return stratified_fold(labels, folds, fold, generator(split_seed))
    count = len(labels)
    size = split_size(val_size, count)
    if not 0 <= size < count or bool(size) != bool(val_size):
        raise InputError(
            f"data.val_size={val_size}: choose 0 to {count - 1} of the {count} training images, "
            f"or a fraction from {1 / count:.2g} to below 1"
        )
    return stratified_split(labels, size, generator(split_seed))


def _shuffled_by_class(labels: "Tensor", generator: "torch.Generator") -> "Tensor":
    """Return all row numbers (N,), sorted by class and in random order within each class."""
    import torch

    shuffled = torch.randperm(len(labels), generator=generator)
    return shuffled[labels[shuffled].argsort(stable=True)]


def _partition(count: int, second: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Return the rows below `count` that are not in `second`, and those that are, ascending."""
    import torch

    mask = torch.zeros(count, dtype=torch.bool)
    mask[second] = True
    return torch.nonzero(~mask).flatten(), torch.nonzero(mask).flatten()
