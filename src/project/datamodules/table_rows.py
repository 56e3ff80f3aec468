"""Rows of a table as targets and splits: the members that data modules of tables share."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from project.datamodules.base import Split
from project.datamodules.storage import tables
from project.datamodules.targets import TargetType


class TableRows:
    """Mixin of data modules whose targets and splits are columns of a table; name it before the base class.

    The constructor of the data module sets the attributes.
    """

    table: Path
    label_columns: list[str]  # one column of class names, or columns of labels or real values
    split_column: str | None  # column of the words train, val and test
    classes: Sequence[str] | None  # class names in the order of the labels; None: those of the training rows
    target_type: TargetType

    @property
    def source(self) -> str:
        """The key and the file of the table, for messages."""
        return f"data.table={self.table}"

    @cached_property
    def class_names(self) -> list[str]:
        """Names of the classes, labels or real values."""
        if self.target_type != "class":
            return self.label_columns
        table = tables.read_table(str(self.table))
        return tables.classes_of(table, self.label_columns[0], self.split_column, self.classes)

    @property
    def has_validation(self) -> bool:
        """True if the table has a validation split, or the base class takes one from the training rows."""
        return "val" in self.splits_of_table or bool(super().has_validation)  # type: ignore[misc]

    @cached_property
    def splits_of_table(self) -> Mapping[str, list[int]]:
        """Rows of the splits that the table has."""
        return tables.split_rows(tables.read_table(str(self.table)), self.split_column) or {}

    def rows_of_table(self, split: Split) -> Tensor | None:
        """Return the rows of a split, or the training rows for a test split that the table does not have.

        Returns:
            Row numbers, (N,); None if `val` is taken from `train`.
        """
        if split == "val" and "val" not in self.splits_of_table:
            return None
        table = tables.read_table(str(self.table))
        known = self.splits_of_table
        return torch.tensor(
            known[split] if split in known else tables.training_rows(table, self.split_column)
        )

    def targets_of_table(self) -> Tensor:
        """Return class indices (N,) long, or labels or real values (N, K) float, of all rows.

        Raises:
            DataError: a cell does not fit.
        """
        table = tables.read_table(str(self.table))
        return table_targets(table, self.label_columns, self.class_names, self.target_type)


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
    return table_numbers(table, "data.label_columns", columns, are_labels=target_type == "multilabel")


def table_numbers(
    table: tables.Table, key: str, columns: Sequence[str], *, are_labels: bool = False
) -> Tensor:
    """Return columns of a table as numbers (N, K) float; arguments and errors of `tables.numbers_of`."""
    values = [tables.numbers_of(table, key, name, are_labels=are_labels) for name in columns]
    return torch.tensor(values, dtype=torch.float64).T.float().contiguous()
