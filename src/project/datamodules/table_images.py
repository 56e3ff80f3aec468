"""Images in a table: a CSV file with a column of image files, and columns of targets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from project.datamodules.base import Split
from project.datamodules.image_folder import ImageFiles
from project.datamodules.storage import tables
from project.datamodules.table_rows import TableRows
from project.datamodules.targets import TargetType


class TableImages(TableRows, ImageFiles):
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
        classes: class names in the order of the labels; some may have no row (default null: those of the
            training rows, sorted).
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
        classes: Sequence[str] | None = None,
        target_type: TargetType | None = None,
        **base: Any,
    ) -> None:
        self.label_columns = tables.as_names(label_columns)
        tables.check_image_column(image_column, self.label_columns)
        kind = tables.target_kind(tables.read_table(table), self.label_columns, target_type)
        super().__init__(name="csv", target_type=kind, **base)
        self.table = Path(table)
        self.image_column = image_column
        self.path = path
        self.split_column = split_column
        self.classes = classes

    @property
    def location(self) -> Path:
        return self.table.absolute()

    def labeled_files(self, split: Split) -> tuple[list[str], Tensor] | None:
        """Return the files of a split and their targets; None if `val` is taken from `train`.

        Raises:
            DataError: image files are missing.
        """
        if (rows := self.rows_of_table(split)) is None:
            return None
        files = tables.image_files(str(self.table), self.path, self.image_column)
        targets = self.targets_of_table()
        if split != "val" and "test" not in self.splits_of_table:
            rows = rows[self._rows_of(split, targets[rows])]
        tables.refuse_missing_images(files, rows.tolist(), self.image_column, f"{split} ")
        return [files[row] for row in rows.tolist()], targets[rows]
