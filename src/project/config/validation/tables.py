"""Check the cells of a table: features, labels, splits and image files, before torch is imported."""

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from project.config.source_index import inherits
from project.datamodules.storage import tables

TABLE_ROWS = "project.datamodules.table_rows.TableRows"
MAX_CHECKED_FILES = 10_000
"""Image files of a table that are looked for before the run folder exists; the data module looks for all."""


def refuse_wrong_cells(config: DictConfig) -> None:
    """Refuse a table whose cells do not fit the configuration.

    Args:
        config: composed configuration, whose values are valid.

    Raises:
        DataError: a cell does not fit, or an image file is missing.
        InputError: a column is missing, the image column is a label, or the rows are too few for a test.
    """
    target = OmegaConf.select(config, "data._target_")
    if not isinstance(target, str) or not inherits(target, TABLE_ROWS) or "table" not in config.data:
        return
    names = (
        *("table", "label_columns", "feature_columns", "image_column", "split_column", "target_type"),
        *("test_size", "classes", "path"),
    )
    values = {name: OmegaConf.select(config, f"data.{name}") for name in names}
    plain = {name: tuple(v) if OmegaConf.is_list(v) else v for name, v in values.items()}
    table, folder = str(plain.pop("table")), plain.pop("path")
    tables.read_table(table)  # refuses a missing file
    _check(table, Path(table).stat().st_mtime_ns, str(Path.cwd()), folder=folder, **plain)


@cache  # the jobs of a sweep share a table
def _check(
    path: str,
    _mtime_ns: int,
    _here: str,
    *,
    folder: str | None,
    label_columns: Any,
    feature_columns: Any,
    image_column: str | None,
    split_column: str | None,
    target_type: str | None,
    test_size: Any,
    classes: Any,
) -> None:
    table = tables.read_table(path)
    labels = tables.as_names(label_columns)
    kind = tables.target_kind(table, labels, target_type)
    tables.check_label_columns(labels, kind)
    if kind == "class":
        tables.classes_of(table, labels[0], split_column, classes)
    for name in labels if kind != "class" else ():
        tables.numbers_of(table, "data.label_columns", name, are_labels=kind == "multilabel")
    if image_column is not None:
        tables.check_image_column(image_column, labels)
        files = tables.image_files(path, folder, image_column)
        tables.refuse_missing_images(files, range(min(len(files), MAX_CHECKED_FILES)), image_column)
    else:
        for name in tables.feature_columns(path, feature_columns, labels, split_column):
            tables.numbers_of(table, "data.feature_columns", name)
    rows = tables.training_rows(table, split_column)
    if isinstance(test_size, int | float) and "test" not in (tables.split_rows(table, split_column) or {}):
        tables.num_test_rows(table, len(rows), test_size)
