"""Predictions as a table on the screen, CSV, JSON, or JSON a line. Needs no torch."""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

from project.errors import InputError
from project.inference.predict.table import TableLayout
from project.runtime.csv_cells import escape_all
from project.runtime.write_probe import whole_file

if TYPE_CHECKING:
    from project.inference.predict.predictions import Prediction

Format = Literal["table", "csv", "json", "jsonl"]
SUFFIXES: dict[str, Format] = {".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".txt": "table"}
SCREEN = "-"
DIGITS = 6
"""Of a probability that is written, significant ones: single precision has no more."""


class Writer(Protocol):
    """Writes predictions one by one."""

    def write(self, prediction: "Prediction") -> None:
        """Write one."""
        ...

    def end(self) -> None:
        """Write what stands behind the last one."""
        ...


class TableWriter:
    """Columns side by side.

    Args:
        stream: written to.
        layout: of the columns.
    """

    def __init__(self, stream: IO[str], layout: TableLayout) -> None:
        self.stream = stream
        self.layout = layout
        self._begun = False

    def write(self, prediction: "Prediction") -> None:
        """See `Writer`."""
        if not self._begun:
            self._begun = True
            self.stream.write(self.layout.head() + "\n")
        self.stream.write(self.layout.row(prediction) + "\n")

    def end(self) -> None:
        """See `Writer`."""


class CsvWriter:
    """A line a file: `file,class,probability`, then `class_2,probability_2` and so on.

    Names with commas or quotes stand in quotes (RFC 4180), and see `csv_cells`.

    Args:
        stream: written to.
        top: how many classes a row names.
    """

    def __init__(self, stream: IO[str], top: int) -> None:
        self._rows = csv.writer(stream, lineterminator="\n")
        head = ["file", "class", "probability"]
        for number in range(2, top + 1):
            head += [f"class_{number}", f"probability_{number}"]
        self._rows.writerow(head)

    def write(self, prediction: "Prediction") -> None:
        """See `Writer`."""
        row = [prediction.file]
        for name, value in zip(prediction.classes, prediction.probabilities, strict=True):
            row += [name, f"{value:.{DIGITS}g}"]
        self._rows.writerow(escape_all(row))

    def end(self) -> None:
        """See `Writer`."""


class JsonWriter:
    """An object a file: `{"file": …, "class": …, "probability": …, "top": [{"class": …, …}, …]}`.

    Args:
        stream: written to.
        lines: one object a line; else they are the items of one array.
    """

    def __init__(self, stream: IO[str], *, lines: bool) -> None:
        self.stream = stream
        self.lines = lines
        self._separator = "" if lines else "[\n"

    def write(self, prediction: "Prediction") -> None:
        """See `Writer`."""
        top = [
            {"class": name, "probability": _significant(value)}
            for name, value in zip(prediction.classes, prediction.probabilities, strict=True)
        ]
        self.stream.write(self._separator + json.dumps({"file": prediction.file, **top[0], "top": top}))
        self._separator = ",\n"
        if self.lines:
            self._separator = ""
            self.stream.write("\n")

    def end(self) -> None:
        """See `Writer`."""
        if not self.lines:
            self.stream.write("[]\n" if self._separator == "[\n" else "\n]\n")


def _significant(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def make_writer(kind: Format, stream: IO[str], layout: Callable[[], TableLayout], top: int) -> Writer:
    """The writer of a format.

    Args:
        kind: the format.
        stream: written to.
        layout: is called for a table's columns.
        top: how many classes a prediction names.
    """
    if kind == "table":
        return TableWriter(stream, layout())
    return CsvWriter(stream, top) if kind == "csv" else JsonWriter(stream, lines=kind == "jsonl")


def choose_format(output: str, wanted: Format | None) -> Format:
    """The format that is asked for, or that the output's name ends in.

    Raises:
        InputError: neither says one.
    """
    if wanted is not None:
        return wanted
    if output == SCREEN:
        return "table"
    if (kind := SUFFIXES.get(Path(output).suffix.lower())) is None:
        raise InputError(f"output={output}: end its name in {', '.join(SUFFIXES)}, or give format=…")
    return kind


@contextmanager
def replacing(key: str, file: str, *, keep: bool = False) -> Iterator[Path]:
    """Where to write a file that is to be whole or not there; see `whole_file`.

    Raises:
        InputError: it cannot be written.
    """
    with ExitStack() as stack:
        try:
            path = stack.enter_context(whole_file(Path(file), keep=keep))
        except OSError as error:
            raise InputError(
                f"{key}={file}: cannot be written ({error.strerror}); give one that you may write to"
            ) from error
        yield path


@contextmanager
def opened(output: str, kind: Format) -> Iterator[IO[str]]:
    """The stream that predictions are written to: UTF-8, names that are not as the bytes that they are.

    Args:
        output: a file, or `-` for standard output.
        kind: the format.
    """
    if output == SCREEN:
        screen: Any = sys.stdout
        if kind == "table":
            screen.reconfigure(errors="backslashreplace")
        else:
            screen.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")
        yield screen
        screen.flush()
        return
    with (
        replacing("output", output, keep=True) as path,
        path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
    ):
        try:
            yield stream
        except InputError:
            path.unlink(missing_ok=True)  # there is nothing in it
            raise
        except BaseException:
            print(f"{path} has what was predicted until then", file=sys.stderr)
            raise
