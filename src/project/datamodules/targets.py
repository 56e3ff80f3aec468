"""Targets of inputs: class indices, labels or real values; their conversion and checks."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from project.errors import InputError
from project.runtime.text import printable

TargetType = Literal["class", "multilabel", "real"]
"""Class indices (N,) long; labels (N, K) float, each 0 or 1; real values (N, D) float."""

SEVERAL_LABELS = 'for several labels per image set TARGET_TYPE = "multilabel" and task=multilabel'
REAL_VALUES = 'for real values set TARGET_TYPE = "real" and task=regression'


def as_targets(labels: Any, count: int, title: str, target_type: TargetType) -> Tensor:
    """Convert the targets of `count` inputs to a tensor of their type.

    Raises:
        InputError: the targets have another shape or type, or are not finite.
    """
    if target_type == "class":
        return as_class_indices(labels, count, title)
    kind = "0 or 1 for each label" if target_type == "multilabel" else "real values"
    given = as_tensor(labels, f"targets of {title} are not numbers", kind, "return a tensor of numbers")
    if given.ndim == 1 and target_type == "real":
        given = given[:, None]
    if given.ndim != 2 or len(given) != count or given.is_complex():
        raise InputError(
            f"data: targets of {title} do not fit (expected {kind} of shape [{count}, columns], got "
            f"{describe(given)}); return one row per input"
        )
    targets = given.float()
    if not bool(targets.isfinite().all()):
        row = int((~targets.isfinite()).any(1).nonzero()[0])
        raise InputError(
            f"data: targets of {title} are not finite (expected {kind}, got {targets[row].tolist()} in row "
            f"{row}); correct or remove these rows"
        )
    if target_type == "multilabel" and not bool(((targets == 0) | (targets == 1)).all()):
        raise InputError(
            f"data: targets of {title} are not labels (expected 0 or 1, got {float(targets.min()):g} to "
            f"{float(targets.max()):g}); correct the targets, or set task=regression for real values"
        )
    return targets


def check_targets(targets: Tensor, num_classes: int, title: str) -> None:
    """Check converted targets against `num_classes`: the number of classes, labels or values.

    Raises:
        InputError: the number does not fit, or there are no targets.
    """
    if not len(targets):
        raise InputError(f"data: {title} are missing; give at least one")
    if targets.ndim == 2:
        if targets.shape[1] != num_classes:
            raise InputError(
                f"data.num_classes={num_classes}: {title} have {targets.shape[1]} targets each; set "
                f"data.num_classes={targets.shape[1]}, or correct the targets"
            )
        return
    lowest, highest = int(targets.min()), int(targets.max())
    if lowest < 0 or highest >= num_classes:
        raise InputError(
            f"data.num_classes={num_classes}: labels of {title} run from {lowest} to {highest}; "
            f"set data.num_classes={highest + 1}, or correct the files"
        )


def as_class_indices(labels: Any, count: int, title: str) -> Tensor:
    """Convert integer or boolean labels, (count,) or (count, 1), to class indices (count,) of type long.

    Raises:
        InputError: `labels` has another shape or type.
    """
    given = as_tensor(
        labels, f"labels of {title} are not numbers", f"{count} integers", "return a tensor of class indices"
    )
    is_integer = not given.is_floating_point() and not given.is_complex()
    if is_integer and given.shape in ((count,), (count, 1)):
        return given.reshape(count).long()
    remedy = "return one label for each image"
    if given.ndim == 2 and len(given) == count and given.shape[1] > 1:
        is_one_hot = bool(((given != 0).sum(1) == 1).all())
        remedy = "return labels.argmax(1)" if is_one_hot else SEVERAL_LABELS
    elif not is_integer:
        remedy = f"return labels.long() if they are class indices; {REAL_VALUES}"
    raise InputError(
        f"data: labels of {title} are not class indices (expected integers of shape [{count}], got "
        f"{describe(given)}); {remedy}"
    )


def as_tensor(value: Any, problem: str, expected: str, remedy: str) -> Tensor:
    """Convert a value to a tensor; the strings complete the error message.

    Raises:
        InputError: the value is not numeric.
    """
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"data: {problem} (expected {expected}, got {describe(value)}); {remedy}") from error


def describe(value: Any) -> str:
    """Return dtype and shape of a tensor, or the type of another value, for messages."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} of shape {list(value.shape)}"


def check_classes(trained: Sequence[str], found: Sequence[str], source: str, remedy: str) -> None:
    """Check that class names equal those of training: renamed or added class folders shift the labels.

    Args:
        trained: class names during training, in the order of the labels.
        found: class names of the data, in the order of the labels.
        source: key and value that select the data, such as `data.path=photos`.
        remedy: end of the message.

    Raises:
        InputError: the names differ.
    """
    trained, found = [printable(name) for name in trained], [printable(name) for name in found]
    if trained == found:
        return
    if len(trained) != len(found):
        raise InputError(
            f"{source}: {len(found)} classes, but the network was trained on {len(trained)}; {remedy}"
        )
    index = next(index for index, name in enumerate(trained) if found[index] != name)
    raise InputError(
        f"{source}: other classes than those of training: class {index} is {found[index]} (expected "
        f"{trained[index]}); {remedy}"
    )
