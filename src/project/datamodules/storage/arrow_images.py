"""Images in Arrow and Parquet files, as the library `datasets` writes them. Does not import torch.

A folder of `save_to_disk` holds `state.json` with the names of the Arrow files, and `dataset_info.json` with
the types of the columns. A folder of several splits holds `dataset_dict.json` and a subfolder per split.
Parquet files hold the types in their schema's metadata.
"""

import io
import json
import random
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from project.datamodules.storage.class_folders import Survey, survey_files
from project.errors import DataError, InputError, summarize
from project.runtime.extras import import_extra
from project.runtime.text import printable

SPLIT_OF = {"train": "train", "training": "train", "test": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "val"
)
"""Splits by their names in files and folders."""
IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "fine_label", "class")
MAX_HEADERS = 200  # images whose headers are read for shape and color


class Columns(NamedTuple):
    """Columns of images and labels.

    Args:
        image: name of the column of images.
        label: name of the column of labels.
        class_names: names in the order of the labels; None if the labels are not class numbers.
    """

    image: str
    label: str
    class_names: tuple[str, ...] | None


class EncodedImage(io.BytesIO):
    """Bytes of an image file, with a name for messages."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name

    def __str__(self) -> str:
        return self.name


def find_splits(path: str) -> dict[str, list[Path]]:
    """Return the data files of each split (`train`, `val`, `test`) in their order.

    Raises:
        DataError: the folder holds no data set, or has no training split.
    """
    root = Path(path)
    found: dict[str, list[Path]] = {}
    if (root / "dataset_dict.json").is_file():
        for name in _read_json(root / "dataset_dict.json").get("splits", ()):
            found.setdefault(SPLIT_OF.get(name.lower(), name), []).extend(_arrow_files(root / name))
    elif (root / "state.json").is_file():
        found["train"] = _arrow_files(root)
    else:
        for file in sorted(root.rglob("*.parquet")):
            words = [*re.split(r"[-_.]", file.stem.lower())[:1], file.parent.name.lower()]
            split = next((SPLIT_OF[word] for word in words if word in SPLIT_OF), "train")
            found.setdefault(split, []).append(file)
    if not found.get("train"):
        what = f"no training split among {', '.join(found)}" if found else "no data set"
        raise DataError(
            f"data.path={printable(path)}: {what} (expected a folder of datasets.save_to_disk, or Parquet "
            "files); correct the path"
        )
    return found


def _arrow_files(folder: Path) -> list[Path]:
    return [folder / entry["filename"] for entry in _read_json(folder / "state.json")["_data_files"]]


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"data.path: {file} is damaged ({summarize(error)}); write the data set again"
        ) from error


def find_columns(path: str, image_column: str | None, label_column: str | None) -> Columns:
    """Find the columns of images and labels by their types, or by usual names.

    Raises:
        InputError: there is no such column, or several.
        DataError: as in `find_splits`.
    """
    file = find_splits(path)["train"][0]
    reader = _open(file)
    schema = reader.schema_arrow if file.suffix == ".parquet" else reader.schema
    features = _features(file, schema)
    image = image_column or _only(
        "image_column",
        schema.names,
        features,
        "Image",
        [name for name in IMAGE_NAMES if name in schema.names],
    )
    label = label_column or _only(
        "label_column",
        schema.names,
        features,
        "ClassLabel",
        [name for name in LABEL_NAMES if name in schema.names],
    )
    for key, name in (("image_column", image), ("label_column", label)):
        if name not in schema.names:
            raise InputError(f"data.{key}={name}: no such column; choose from {', '.join(schema.names)}")
    names = features.get(label, {}).get("names")
    return Columns(image, label, tuple(map(str, names)) if names else None)


def _features(file: Path, schema: Any) -> dict[str, Any]:
    """Return the types of the columns as `datasets` writes them; empty for files of other programs."""
    info = file.parent / "dataset_info.json"
    if file.suffix == ".arrow" and info.is_file():
        return _read_json(info).get("features") or {}
    written = (schema.metadata or {}).get(b"huggingface")
    return json.loads(written)["info"].get("features") or {} if written else {}


def _only(key: str, names: Sequence[str], features: dict[str, Any], kind: str, usual: Sequence[str]) -> str:
    typed = [
        name for name in names if isinstance(features.get(name), dict) and features[name].get("_type") == kind
    ]
    found = typed if len(typed) == 1 else [name for name in usual if not typed or name in typed][:1]
    if not found:
        raise InputError(
            f"data.{key}=null: cannot tell which column; choose from {', '.join(typed or names)}"
        )
    return found[0]


def _open(file: Path) -> Any:
    """Return pyarrow's reader of a file: a `ParquetFile`, or a stream of record batches."""
    arrow = import_extra("pyarrow", "data=huggingface", "huggingface")
    try:
        if file.suffix == ".parquet":
            return import_extra("pyarrow.parquet", "data=huggingface", "huggingface").ParquetFile(file)
        return import_extra("pyarrow.ipc", "data=huggingface", "huggingface").open_stream(
            arrow.memory_map(str(file))
        )
    except (OSError, arrow.ArrowException) as error:
        raise DataError(
            f"data.path: {file} is missing or damaged ({summarize(error)}); write the data set again"
        ) from error


def read_column(files: Sequence[Path], column: str) -> Any:
    """Return a column of all files as one array of Arrow."""
    arrow = import_extra("pyarrow", "data=huggingface", "huggingface")
    chunks: list[Any] = []
    for file in files:
        reader = _open(file)
        try:
            table = reader.read([column]) if file.suffix == ".parquet" else reader.read_all()
            chunks += table.column(column).chunks
        except (OSError, KeyError, arrow.ArrowException) as error:
            raise DataError(
                f"data.path: {file} is damaged ({summarize(error)}); write the data set again"
            ) from error
    return arrow.chunked_array(chunks)


def encoded_image(column: Any, row: int, name: str) -> EncodedImage:
    """Return the image of a row.

    Args:
        column: array of structs with `bytes` and `path`, or of bytes.
        row: number of the row.
        name: name of the image in messages.

    Raises:
        DataError: the row holds no image.
    """
    value = column[row].as_py()
    if isinstance(value, dict):
        file = value.get("path")
        value = value.get("bytes")
        if value is None and file and Path(file).is_file():
            value = Path(file).read_bytes()
    if not isinstance(value, bytes):
        raise DataError(
            f"data.path: {name} holds no image (expected the bytes of an image file); repair the data set"
        )
    return EncodedImage(value, name)


@lru_cache(maxsize=8)
def class_names(path: str, image_column: str | None, label_column: str | None) -> tuple[str, ...]:
    """Return the class names in the order of the labels: those of the column's type, or its sorted values."""
    columns = find_columns(path, image_column, label_column)
    if columns.class_names is not None:
        return columns.class_names
    values = read_column(find_splits(path)["train"], columns.label).unique().to_pylist()
    return tuple(str(value) for value in sorted(value for value in values if value is not None))


@lru_cache(maxsize=8)
def survey(path: str, image_column: str | None, label_column: str | None) -> Survey:
    """Read the headers of at most `MAX_HEADERS` training images."""
    columns = find_columns(path, image_column, label_column)
    column = read_column(find_splits(path)["train"], columns.image)
    rows = sorted(random.Random(0).sample(range(len(column)), min(MAX_HEADERS, len(column))))  # noqa: S311
    if not rows:
        raise DataError(f"data.path={printable(path)}: the training split is empty")
    images: Any = [encoded_image(column, row, f"row {row} of train in {path}") for row in rows]
    return survey_files(images)
