"""Images in a table: a CSV file with a column of image files, and columns of targets."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from project.datamodules.base import Split
from project.datamodules.image_folder import ImageFiles
from project.datamodules.storage import tables
from project.datamodules.targets import TargetType
from project.errors import DataError
from project.runtime.text import printable


class TableImages(ImageFiles):
    """Images and targets of a CSV file.

    By `target_type`, one label column of names holds classes, several columns of 0 and 1 hold labels, and
    columns of numbers hold real values. Rows of a split that the table does not have are taken from the
    training rows, stratified by class.

    Args:
        table: CSV file with a header.
        label_columns: column of class names, or columns of labels or real values.
        image_column: column of image files (default image).
        path: folder at which relative image files start (default null: the folder of the table).
        split_column: column of the words train, val and test (default null: none).
        target_type: `class`, `multilabel` or `real` (default null: by the columns, see `target_kind`).
        base: arguments of `ImageFiles`.

    Raises:
        InputError: a column is missing, or the columns do not fit the targets.
        DataError: the table or its cells do not fit, or images are missing or damaged.
    """

    DATASET_FACTS: ClassVar[dict[str, Any] | None] = None
    TARGET_TYPE: ClassVar[Any] = None

    def __init__(
        self,
        table: str,
        label_columns: str | Sequence[str],
        image_column: str = "image",
        path: str | None = None,
        split_column: str | None = None,
        target_type: TargetType | None = None,
        **base: Any,
    ) -> None:
        self.label_columns = tables.as_names(label_columns)
        kind = tables.target_kind(tables.read_table(table), self.label_columns, target_type)
        super().__init__(name="csv", target_type=kind, **base)
        self.table = Path(table)
        self.image_column = image_column
        self.path = path
        self.split_column = split_column

    @property
    def location(self) -> Path:
        return self.table.absolute()

    @property
    def source(self) -> str:
        return f"data.table={self.table}"

    @cached_property
    def class_names(self) -> list[str]:
        """Names of the classes, labels or real values."""
        if self.target_type != "class":
            return self.label_columns
        return tables.classes_of(tables.read_table(str(self.table)), self.label_columns[0], self.split_column)

    @property
    def has_validation(self) -> bool:
        return super().has_validation or "val" in self._splits

    @cached_property
    def _splits(self) -> dict[str, list[int]]:
        """Rows of the splits that the table has."""
        return dict(tables.split_rows(tables.read_table(str(self.table)), self.split_column) or {})

    def labeled_files(self, split: Split) -> tuple[list[str], Tensor] | None:
        """Return the files of a split and their targets; None if `val` is taken from `train`.

        Raises:
            DataError: image files are missing.
        """
        if split == "val" and "val" not in self._splits:
            return None
        table = tables.read_table(str(self.table))
        files = tables.image_files(str(self.table), self.path, self.image_column)
        targets = table_targets(table, self.label_columns, self.class_names, self.target_type)
        rows = torch.tensor(self._splits.get(split, self._splits.get("train", range(len(files)))))
        if split != "val" and "test" not in self._splits:
            rows = rows[self._rows_of(split, targets[rows])]
        chosen = [files[row] for row in rows.tolist()]
        missing = [row for row, file in zip(rows.tolist(), chosen, strict=True) if not os.path.isfile(file)]  # noqa: PTH113 - of a million files
        if missing:
            raise DataError(
                f"data.image_column={self.image_column}: {len(missing):,} of {len(chosen):,} {split} images "
                f"are missing (row {missing[0] + 1}: {printable(files[missing[0]])}); correct the paths, or "
                "set data.path to the folder where they start"
            )
        return chosen, targets[rows]


def table_targets(
    table: tables.Table, columns: Sequence[str], class_names: Sequence[str], target_type: TargetType
) -> Tensor:
    """Return the targets of a table: class indices (N,) long, or labels or real values (N, K) float.

    Raises:
        DataError: a cell does not fit.
    """
    if target_type == "class":
        index = {name: label for label, name in enumerate(class_names)}
        return torch.tensor([index[cell] for cell in table.column("data.label_columns", columns[0])])
    are_labels = target_type == "multilabel"
    values = [tables.numbers_of(table, "data.label_columns", name, are_labels=are_labels) for name in columns]
    return torch.tensor(values, dtype=torch.float64).T.float().contiguous()
