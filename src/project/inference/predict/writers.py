"""Writers of predictions: table, CSV, JSON, or JSON Lines. Does not import torch."""

import csv
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from project.errors import InputError
from project.runtime.console import Column, has_color, table
from project.runtime.csv_files import escape_all
from project.runtime.output_files import atomic_output
from project.runtime.text import columns_of, printable, shorten

if TYPE_CHECKING:
    from project.inference.predict.predictions import Prediction

Format = Literal["table", "csv", "json", "jsonl"]
SUFFIXES: dict[str, Format] = {".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".txt": "table"}
STDOUT = "-"
DIGITS = 6
"""Significant digits of a probability in a file, as many as single precision has."""
EARLIER_OUTPUT: dict[Format, re.Pattern[bytes]] = {
    "table": re.compile(rb"file\b[^\n]*\bclass +probability"),
    "csv": re.compile(rb"file,(class,probability\b|(row,)?prediction\b)"),
    "json": re.compile(rb'\[\n\{"file": |\[\]\n'),
    "jsonl": re.compile(rb'\{"file": '),
}
"""Starts of prediction files, which may be replaced."""
MIN_FILE_WIDTH = 20
"""Terminal columns reserved for file names before a second class is shown."""
MAX_CLASS_WIDTH = 24


def write_predictions(
    kind: Format,
    stream: TextIO,
    predictions: Iterable["Prediction"],
    class_names: Sequence[str],
    top_k: int,
    width: int,
) -> None:
    """Write predictions in a format."""
    if kind == "table":
        color = has_color(stream)
        stream.write(render_table(predictions, class_names, top_k, width, color=color) + "\n")
    elif kind == "csv":
        write_csv(stream, predictions, top_k)
    elif kind == "jsonl":
        stream.writelines(f"{_to_json(prediction)}\n" for prediction in predictions)
    else:
        separator = "[\n"
        for prediction in predictions:
            stream.write(separator + _to_json(prediction))
            separator = ",\n"
        stream.write("\n]\n")


def write_csv(stream: TextIO, predictions: Iterable["Prediction"], top_k: int) -> None:
    """Write rows `file,class,probability,class_2,probability_2,…` (RFC 4180; see `csv_files`)."""
    rows = csv.writer(stream, lineterminator="\n")
    suffixes = ["", *(f"_{number}" for number in range(2, top_k + 1))]
    rows.writerow(["file", *(f"{name}{suffix}" for suffix in suffixes for name in ("class", "probability"))])
    for prediction in predictions:
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        cells = [cell for name, value in pairs for cell in (name, f"{value:.{DIGITS}g}")]
        rows.writerow(escape_all([prediction.file, *cells]))


def _to_json(prediction: "Prediction") -> str:
    """Return `{"file": …, "class": …, "probability": …, "top": [{"class": …, "probability": …}, …]}`."""
    top = [
        {"class": name, "probability": float(f"{value:.{DIGITS}g}")}
        for name, value in zip(prediction.classes, prediction.probabilities, strict=True)
    ]
    return json.dumps({"file": prediction.file, **top[0], "top": top})


def render_table(
    predictions: Iterable["Prediction"],
    class_names: Sequence[str],
    top_k: int,
    width: int,
    *,
    color: bool = False,
) -> str:
    """Format predictions for a terminal; further classes are shown if they fit."""
    longest = max(columns_of(printable(name)) for name in class_names)
    class_width = min(max(longest, len("class")), MAX_CLASS_WIDTH)
    room = width - MIN_FILE_WIDTH - class_width - len("    probability")
    num_more = max(0, min(top_k - 1, room // (class_width + len("   0.99"))))
    rows = []
    for prediction in predictions:
        names = [shorten(printable(name), class_width, keep="ends") for name in prediction.classes]
        pairs = list(zip(names, prediction.probabilities, strict=True))
        more = [f"{name} {_round(value, 2)}" for name, value in pairs[1 : num_more + 1]]
        rows.append([prediction.file, names[0], _round(prediction.probability, 4), *more])
    folder = _common_folder([row[0] for row in rows])
    for row in rows:
        row[0] = printable(row[0].removeprefix(folder))
    columns: list[str | Column] = [
        Column(f"file in {printable(folder)}" if folder else "file", right=False, keep="ends"),
        Column("class", right=False, fixed=True),
        "probability",
        *(Column(f"class_{number + 2}", right=False, fixed=True) for number in range(num_more)),
    ]
    return table(columns, rows, width=width, color=color)


def _round(probability: float, digits: int) -> str:
    """Format a probability without rounding values below 1 up to 1."""
    largest = 1 - 10**-digits
    return f"{min(probability, largest) if probability < 1 else probability:.{digits}f}"


def _common_folder(files: Sequence[str]) -> str:
    """Return the common folder of all files with a trailing slash; empty for none or a single file."""
    try:
        common = os.path.commonpath({os.path.dirname(file) for file in files})
    except ValueError:  # absolute paths among relative ones
        return ""
    folder = os.path.join(common, "")
    return folder if len(files) > 1 and common and all(file.startswith(folder) for file in files) else ""


def choose_format(output: str, format: Format | None) -> Format:
    """Return the given format, or the format of the output's suffix."""
    if format is not None:
        return format
    if output == STDOUT:
        return "table"
    if (kind := SUFFIXES.get(Path(output).suffix.lower())) is None:
        raise InputError(f"output={output}: the name must end in {', '.join(SUFFIXES)}; or give format=…")
    return kind


@contextmanager
def open_output(output: str, kind: Format) -> Iterator[TextIO]:
    """Open the output as UTF-8; undecodable bytes of file names are written unchanged."""
    if output == STDOUT:
        stdout: Any = sys.stdout
        if kind == "table":
            stdout.reconfigure(errors="backslashreplace")
        else:
            stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")
        yield stdout
        stdout.flush()
        return
    with (
        atomic_output(Path(output)) as path,
        path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
    ):
        yield stream
