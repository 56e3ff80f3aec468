"""Tables of numeric features: a CSV file or NumPy arrays, a vector per row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from project.datamodules.base import Split, SupervisedDataModule
from project.datamodules.loading.loader import MemoryVectors
from project.datamodules.splits import stratified_split
from project.datamodules.storage import tables
from project.datamodules.storage.class_folders import ALL
from project.datamodules.table_rows import TableRows, table_numbers
from project.datamodules.targets import TargetType, check_targets
from project.errors import InputError
from project.runtime.bounds import Range, check_arguments
from project.runtime.seeding import generator


class Tabular(TableRows, SupervisedDataModule):
    """Vectors of features and targets from the rows of a table.

    Features are standardized by mean and standard deviation of the training split. Rows of a split that the
    table does not have are taken from the training rows, stratified by class.

    Args:
        table: CSV file with a header, or `.npz` or `.npy` file (see `read_table`).
        label_columns: column of class names, or columns of labels or real values.
        feature_columns: columns of numeric features (default null: all others).
        split_column: column of the words train, val and test (default null: none).
        test_size: number of test rows if the table has none, or their fraction if below 1; `all`
            makes every row a test row (default 0.2).
        classes: class names in the order of the labels; some may have no row (default null: those of the
            training rows, sorted).
        target_type: `class`, `multilabel` or `real` (default null: by the columns, see `target_kind`).
        name: name of the data set in messages (default tabular).
        base: arguments of `SupervisedDataModule`.

    Raises:
        InputError: a column is missing, or the columns do not fit the targets or `input_shape`.
        DataError: the table or its cells do not fit.
    """

    DATASET_FACTS: ClassVar[dict[str, Any] | None] = None
    TARGET_TYPE: ClassVar[Any] = None
    INPUT_NDIM: ClassVar[int | None] = 1
    CASES = "rows"

    def __init__(
        self,
        table: str,
        label_columns: str | Sequence[str],
        feature_columns: str | Sequence[str] | None = None,
        split_column: str | None = None,
        test_size: Annotated[float, Range(above=0, below=1)]
        | Annotated[int, Range(1)]
        | Literal["all"] = 0.2,
        classes: Sequence[str] | None = None,
        target_type: TargetType | None = None,
        name: str = "tabular",
        **base: Any,
    ) -> None:
        check_arguments("data", Tabular, locals())
        self.label_columns = tables.as_names(label_columns)
        kind = tables.target_kind(tables.read_table(table), self.label_columns, target_type)
        super().__init__(name=name, target_type=kind, **base)
        self.table = Path(table)
        self.feature_columns = tables.feature_columns(
            table, feature_columns, self.label_columns, split_column
        )
        self.split_column = split_column
        self.test_size = test_size
        self.classes = classes
        if self.input_shape != (len(self.feature_columns),):
            raise InputError(
                f"data.input_shape={list(self.input_shape)}: {table} has {len(self.feature_columns)} feature "
                f"columns (expected [{len(self.feature_columns)}]); leave it out"
            )

    def load_inputs(self, split: Split) -> MemoryVectors | None:
        """Return the features (N, F) and targets of a split; None if `val` is taken from `train`."""
        if (rows := self.rows_of_table(split)) is None:
            return None
        table = tables.read_table(str(self.table))
        targets = self.targets_of_table()
        features = table_numbers(table, "data.feature_columns", self.feature_columns)  # N, F
        if split != "val" and "test" not in self.splits_of_table:
            rows = rows[self._rows_of(split, targets[rows])]
        check_targets(targets[rows], self.num_classes, self._title(split))
        return MemoryVectors(features[rows], targets[rows])

    def _rows_of(self, split: Split, targets: Tensor) -> Tensor:
        """Return the rows of the training or test split among rows (N,) that hold both."""
        count = len(targets)
        if isinstance(self.test_size, str):
            if split == "test":
                return torch.arange(count)
            raise InputError(
                f"data.test_size={ALL}: all rows in {self.table} are test rows, none remain for {split}; set "
                "split=test, or give a number"
            )
        size = tables.num_test_rows(tables.read_table(str(self.table)), count, self.test_size)
        train, test = stratified_split(self.strata(targets), size, generator(self.split_seed, 1))
        return test if split == "test" else train

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "feature_columns": self.feature_columns}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        trained = state_dict.get("feature_columns", self.feature_columns)
        if trained != self.feature_columns:
            raise InputError(
                f"data.feature_columns=[{','.join(self.feature_columns)}]: other features than those of "
                f"training (expected [{','.join(trained)}]); give the same columns in the same order"
            )
        super().load_state_dict(state_dict)

    def _measure_inputs(self) -> None:
        """Compute mean and standard deviation of each feature of the training split; 1 for a constant one."""
        if "train" not in self._subsets:
            self._set_up("train")
        images, rows = self._subsets["train"]
        features = images.sample(rows).double()
        std = features.std(0, correction=0)
        self.mean = features.mean(0).tolist()
        self.std = torch.where(std > 0, std, 1.0).tolist()

    def _title(self, split: Split) -> str:
        return f"the {split} rows of data={self.name}"
