"""Splits of labelled images into disjoint parts that keep the share of each class."""

import torch
from torch import Tensor

from project.datamodules.split_size import num_images
from project.errors import InputError
from project.runtime.seeding import generator


def stratified_split(labels: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split the rows of labels (N,) so that each class keeps its share in both parts.

    Returns:
        Row numbers of the first part (N - size,) and of the second (size,), both ascending.

    Raises:
        InputError: `size` leaves no row for the first part.
    """
    count = len(labels)
    if not 0 <= size < count:
        raise InputError(f"data: cannot take {size} of {count} images away; choose 0 to {count - 1}")
    # Evenly spaced rows of the list sorted by class: each class gives its share, rounded, `size` in all.
    spaced = (torch.arange(size) * count + count // 2) // max(1, size)
    return _partition(count, _shuffled_by_class(labels, generator)[spaced])


def stratified_fold(
    labels: Tensor, folds: int, fold: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Split the rows of labels (N,) into `folds` parts whose numbers of rows per class differ by at most one.

    Returns:
        Row numbers of the other parts together and of part `fold`, both ascending.

    Raises:
        InputError: there are fewer rows than parts.
    """
    count = len(labels)
    if not 2 <= folds <= count:
        raise InputError(f"data.folds={folds}: choose 2 to {count}, the number of training images")
    return _partition(count, _shuffled_by_class(labels, generator)[fold::folds])


def split_validation(
    labels: Tensor, val_size: float, folds: int | None, fold: int, split_seed: int
) -> tuple[Tensor, Tensor]:
    """Return the rows that train and those that validate, of labels (N,)."""
    if folds is not None:
        return stratified_fold(labels, folds, fold, generator(split_seed))
    count = len(labels)
    size = num_images(val_size, count)
    if not 0 <= size < count or bool(size) != bool(val_size):
        raise InputError(
            f"data.val_size={val_size}: choose 0 to {count - 1} of the {count} training images, "
            f"or a fraction from {1 / count:.2g} to below 1"
        )
    return stratified_split(labels, size, generator(split_seed))


def _shuffled_by_class(labels: Tensor, generator: torch.Generator) -> Tensor:
    shuffled = torch.randperm(len(labels), generator=generator)
    return shuffled[labels[shuffled].argsort(stable=True)]


def _partition(count: int, second: Tensor) -> tuple[Tensor, Tensor]:
    mask = torch.zeros(count, dtype=torch.bool)
    mask[second] = True
    return torch.nonzero(~mask).flatten(), torch.nonzero(mask).flatten()
