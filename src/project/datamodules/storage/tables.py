"""Tables in CSV files and NumPy arrays: reading, splits, classes, labels and real values of their columns.

Does not import torch: derived values of the configuration are computed from these functions.
"""

import csv
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

from project.datamodules.splits import split_size
from project.datamodules.storage.class_folders import SPLIT_OF_WORD
from project.errors import DataError, InputError, one_line
from project.runtime.text import nearest_names, plural, printable

DELIMITERS = ",;\t"
MAX_NAMED = 3
TABLE_KEY = "data.table"
MAX_TEST_TABLE = 100_000
"""Number of rows up to which the size of a table that has enough test rows is searched."""
MAX_FRACTIONAL_CLASSES = 4
"""Number of different fractions up to which a column of a small table may hold classes."""


class Table(NamedTuple):
    """Table of strings with named columns."""

    file: str
    columns: dict[str, list[str]]  # N cells each, stripped
    key: str = TABLE_KEY  # configuration key that names the file, for messages

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def column(self, key: str, name: str) -> list[str]:
        """Return the cells (N,) of a column, which a configuration key names.

        Raises:
            InputError: the table has no such column.
        """
        if name in self.columns:
            return self.columns[name]
        near = nearest_names(name, list(self.columns))
        known = join_names(self.columns)
        hint = f"did you mean {near[0]}?" if near else "name one of its columns"
        raise InputError(f"{key}={name}: no such column in {self.file} (expected one of {known}); {hint}")


def join_names(names: Iterable[str]) -> str:
    """Return names separated by commas; a name with a comma is quoted."""
    return ", ".join(repr(name) if "," in name else name for name in map(printable, names))


def read_table(path: str, key: str = TABLE_KEY) -> Table:
    """Read a table: a CSV file with a header, in UTF-8, with `,`, `;` or tabs, or an `.npz` or `.npy` file.

    The columns of an `.npz` file are its arrays: `name` for (N,), and `name_0`, `name_1`, … for (N, C).
    Those of an `.npy` file are the fields of a structured array, or `column_0`, `column_1`, … .

    Args:
        path: the file.
        key: configuration key that names the file, for messages.

    Raises:
        DataError: the file is missing, is not such a table, or has no rows.
    """
    try:
        facts = Path(path).stat()
    except FileNotFoundError as error:
        raise DataError(f"{key}={path}: does not exist; give a CSV, .npz or .npy file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise DataError(f"{key}={path}: cannot be read ({reason}); give a CSV, .npz or .npy file") from error
    return _read(path, key, facts.st_size, facts.st_mtime_ns, str(Path.cwd()))


@cache  # several keys follow from one table, and the jobs of a sweep share it
def _read(path: str, key: str, _size: int, _mtime_ns: int, _here: str) -> Table:
    if path.endswith((".npz", ".npy")):
        return Table(path, _read_arrays(path, key), key)
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = max(DELIMITERS, key=first.count)
            file.seek(0)
            head, *rows = [row for row in csv.reader(file, delimiter=delimiter) if row] or [[]]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{key}={path}: is not a text file in UTF-8; give a CSV file in UTF-8 with a header"
        ) from error
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise DataError(
            f"{key}={path}: is not a table ({reason}); give a CSV file in UTF-8 with a header"
        ) from error
    if not head:
        raise DataError(f"{key}={path}: is empty; give a CSV file with a header and rows")
    names = [name.strip() for name in head]
    twice, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{key}={path}: two columns are named {printable(twice)!r}; rename one")
    if not rows:
        raise DataError(f"{key}={path}: has no rows below its header; add some")
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise DataError(
                f"{key}={path}: row {number} has {plural(len(row), 'cell')} (expected {len(names)}, as in "
                "the header); correct it"
            )
    cells = zip(*rows, strict=True)
    columns = {name: [cell.strip() for cell in column] for name, column in zip(names, cells, strict=True)}
    return Table(path, columns, key)


def _read_arrays(path: str, key: str) -> dict[str, list[str]]:
    """Return the columns of an `.npz` or `.npy` file as strings (N,), which keep every digit."""
    import numpy as np  # slow import, and only these files need it

    try:
        loaded = np.load(path, allow_pickle=False)
        if path.endswith(".npz"):
            arrays = dict(loaded)
        else:
            arrays = {name: loaded[name] for name in loaded.dtype.names or ()} or {"column": loaded}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise DataError(f"{key}={path}: is not a table ({one_line(error)}); write it with numpy") from error
    columns: dict[str, list[str]] = {}
    size = min((len(array) for array in arrays.values() if array.ndim), default=0)
    for name, array in arrays.items():
        is_column = array.ndim in (1, 2) and array.dtype.kind in "biufU" and 0 < size == len(array)
        if not is_column:
            raise DataError(
                f"{key}={path}: array {printable(name)} is not a column (expected numbers or texts, "
                f"[N] or [N, C] with one N for all, got {array.dtype} of shape {list(array.shape)}); "
                "correct it"
            )
        values = array.astype(int) if array.dtype.kind == "b" else array
        cells = values.astype(str).reshape(len(array), -1).T.tolist()
        names = [name] if array.ndim == 1 else [f"{name}_{place}" for place in range(len(cells))]
        columns |= dict(zip(names, cells, strict=True))
    return columns


def as_names(value: Any) -> list[str]:
    """Return the column names of a key: one name or a list of names."""
    return [value] if isinstance(value, str) else [str(name) for name in value]


def split_rows(table: Table, split_column: str | None) -> Mapping[str, list[int]] | None:
    """Return the rows of the splits `train`, `val` and `test` that a table has; None without a column.

    Words such as `training`, `valid` and `dev` are accepted, as for folders.

    Raises:
        InputError: there is no such column.
        DataError: a cell names no split.
    """
    if split_column is None:
        return None
    found: dict[str, list[int]] = {}
    for row, word in enumerate(table.column("data.split_column", split_column)):
        if (split := SPLIT_OF_WORD.get(word.lower())) is None:
            raise DataError(
                f"data.split_column={split_column}: row {row + 1} of {table.file} names no split (expected "
                f"train, val or test, got {printable(word)!r}); correct it"
            )
        found.setdefault(split, []).append(row)
    return found


def training_rows(table: Table, split_column: str | None) -> Sequence[int]:
    """Return the rows of the split `train`; all rows without a split column.

    Raises:
        InputError: there is no such column.
        DataError: a cell names no split, or no row is for training.
    """
    splits = split_rows(table, split_column)
    if splits is None:
        return range(len(table))
    if "train" not in splits:
        raise DataError(
            f"data.split_column={split_column}: no row of {table.file} is for training; write train in "
            "some rows"
        )
    return splits["train"]


def target_kind(table: Table, columns: Sequence[str], target_type: str | None) -> Any:
    """Return the kind of targets: `target_type`, or for null what the columns hold.

    One column holds classes. Several columns hold labels if all cells are 0 or 1, and real values otherwise.
    """
    if target_type is not None:
        return target_type
    if len(columns) == 1:
        return "class"
    cells = {cell for name in columns for cell in table.column("data.label_columns", name)}
    return "multilabel" if cells <= {"0", "1"} else "real"


def classes_of(
    table: Table, column: str, split_column: str | None, known: Sequence[str] | None = None
) -> list[str]:
    """Return the classes in the order of the labels: those known, or those of the training rows.

    Classes of training rows are sorted: numbers by value, then names.

    Raises:
        DataError: a row has no class, or one that is not known; without known classes, there is one class
            only, or a class has no training row.
    """
    cells = table.column("data.label_columns", column)
    if "" in cells:
        raise DataError(
            f"data.label_columns={column}: row {cells.index('') + 1} of {table.file} has no class; add it"
        )
    if known is not None:
        if strange := set(cells) - set(known):
            row = next(row for row, cell in enumerate(cells) if cell in strange)
            raise DataError(
                f"data.label_columns={column}: row {row + 1} of {table.file} has an unknown class (expected "
                f"one of {join_names(known)}, got {printable(cells[row])!r}); correct it"
            )
        return list(known)
    train = {cells[row] for row in training_rows(table, split_column)}
    if looks_continuous(cells):
        raise InputError(
            f"data.label_columns={column}: {len(set(cells))} different numbers (expected class names); set "
            "task=regression"
        )
    if len(train) < 2:
        raise DataError(
            f"data.label_columns={column}: one class in the training rows of {table.file} (expected at least "
            "2); add others, or name another column"
        )
    for split, rows in (split_rows(table, split_column) or {}).items():
        if unknown := sorted({cells[row] for row in rows} - train):
            few = printable(", ".join(unknown[:MAX_NAMED])) + (", …" if unknown[MAX_NAMED:] else "")
            raise DataError(
                f"data.label_columns={column}: class {few} of the {split} rows has no training rows; add "
                "some, or remove it"
            )
    return sorted(train, key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name))


def looks_continuous(cells: Sequence[str]) -> bool:
    """Return True for real values rather than classes: most of the cells are fractions, and most differ.

    Numbered classes are no fractions (`3`, also written `3.0`), or few for the number of rows.
    """
    if len(set(cells)) <= max(MAX_FRACTIONAL_CLASSES, len(cells) / 2):
        return False
    try:
        numbers = [float(cell) for cell in cells]
    except ValueError:
        return False
    return sum(not number.is_integer() for number in numbers) > len(cells) / 2


def numbers_of(table: Table, key: str, column: str, *, are_labels: bool = False) -> list[float]:
    """Return a column as finite numbers (N,), or as labels, each 0 or 1.

    Args:
        table: the table.
        key: configuration key that names the column; that of the table if the user named no column.
        column: name of the column.
        are_labels: cells are labels.

    Raises:
        InputError: there is no such column.
        DataError: a cell is not a finite number, or not a label.
    """
    numbers: list[float] = []
    if key == table.key and column not in table.columns:
        raise InputError(
            f"{key}={table.file}: has no column {printable(column)!r} (expected the features of training, "
            f"got {join_names(table.columns)}); add it"
        )
    for row, cell in enumerate(table.column(key, column)):
        try:
            number = float(cell)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or (are_labels and number not in (0, 1)):
            expected = "0 or 1" if are_labels else "a finite number"
            problem = f"does not fit (expected {expected}, got {printable(cell)!r}); correct it"
            if key == table.key:
                raise DataError(
                    f"{key}={table.file}: row {row + 1} of column {printable(column)!r} {problem}"
                )
            raise DataError(
                f"{key}={column}: row {row + 1} of {table.file} {problem}, or name another column"
            )
        numbers.append(number)
    return numbers


def check_label_columns(columns: Sequence[str], kind: str) -> None:
    """Refuse a number of columns that does not fit the kind of targets.

    Raises:
        InputError: classes are in several columns, or labels in one.
    """
    given = f"data.label_columns=[{','.join(columns)}]"
    if kind == "class" and len(columns) != 1:
        raise InputError(
            f"{given}: {len(columns)} columns (expected one column of class names); name one column, or set "
            "task=multilabel for columns of 0 and 1, task=regression for real values"
        )
    if kind == "multilabel" and len(columns) < 2:
        raise InputError(
            f"{given}: {len(columns)} column (expected one column of 0 and 1 per label); name several, or "
            "set task=classification for a column of class names"
        )


def num_outputs(path: str, columns: Any, split_column: str | None, target_type: str | None) -> int:
    """Return the number of classes, labels or real values in the label columns, after checking all of them.

    Raises:
        InputError: the columns are missing, or do not fit the kind of targets.
        DataError: cells do not fit.
    """
    table, names = read_table(path), as_names(columns)
    kind = target_kind(table, names, target_type)
    check_label_columns(names, kind)
    if kind == "class":
        return len(classes_of(table, names[0], split_column))
    for name in names:
        numbers_of(table, "data.label_columns", name, are_labels=kind == "multilabel")
    split_rows(table, split_column)
    return len(names)


def feature_columns(path: str, columns: Any, labels: Any, split_column: str | None) -> list[str]:
    """Return the feature columns: those given, or all that hold neither labels nor the split.

    Raises:
        InputError: a column is missing, or a label is also a feature.
    """
    table, targets = read_table(path), as_names(labels)
    names = [name for name in table.columns if name not in {*targets, split_column}]
    if columns is not None:
        names = as_names(columns)
        if both := [name for name in names if name in targets]:
            raise InputError(
                f"data.feature_columns=[{','.join(names)}]: {both[0]} is also a label (expected other "
                "columns); leave it out"
            )
    for name in names:
        table.column("data.feature_columns", name)
    return names


def check_image_column(image_column: str, label_columns: Sequence[str]) -> None:
    """Refuse the column of image files as a target.

    Raises:
        InputError: the column is also a label.
    """
    if image_column in label_columns:
        raise InputError(
            f"data.label_columns=[{','.join(label_columns)}]: {image_column} holds the image files (expected "
            "columns of targets); name another column, or set data.image_column"
        )


def num_test_rows(table: Table, count: int, test_size: float) -> int:
    """Return the number of test rows to take from `count` rows of a table without a test split.

    Args:
        table: the table.
        count: number of rows that are not validation rows.
        test_size: number of test rows, or their fraction if below 1.

    Raises:
        InputError: no row is left for training, or for the test.
    """
    size = split_size(test_size, count)
    if 0 < size < count:
        return size
    least = next((n for n in range(2, MAX_TEST_TABLE) if 0 < split_size(test_size, n) < n), None)
    enough = f" (expected at least {least} rows)" if least is not None and count < least else ""
    raise InputError(
        f"data.test_size={test_size}: does not fit the {plural(count, 'row')} of {table.file}{enough}; add "
        "rows, or choose another size"
    )


def image_files(path: str, folder: str | None, image_column: str) -> list[str]:
    """Return the image files (N,) of a table; relative paths start at `folder`, null for the table's folder.

    Raises:
        InputError: there is no such column.
    """
    table = read_table(path)
    root = Path(folder) if folder is not None else Path(path).parent
    return [str(root / cell) for cell in table.column("data.image_column", image_column)]


def refuse_missing_images(
    files: Sequence[str], rows: Sequence[int], image_column: str, kind: str = ""
) -> None:
    """Refuse a table whose image files are missing.

    Args:
        files: image file of each row.
        rows: rows to check, from 0.
        image_column: column of the image files.
        kind: word before "images" in the message, such as `"train "`.

    Raises:
        DataError: an image file is missing.
    """
    missing = [row for row in rows if not os.path.isfile(files[row])]  # noqa: PTH113 - of a million files
    if missing:
        raise DataError(
            f"data.image_column={image_column}: {len(missing):,} of {len(rows):,} {kind}images are missing "
            f"(row {missing[0] + 1}: {printable(files[missing[0]])}); correct the paths, or set data.path to "
            "the folder where they start"
        )
