r"""CSV files: cells that no spreadsheet runs as a formula (CWE-1236), and tables of metrics.

An escaped cell begins with an apostrophe, and its control characters are written as in Python: `'=1+1`,
`'two\nlines`. Cells that begin with an apostrophe are also escaped.
"""

import csv
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from project.runtime.text import is_numeric

DANGEROUS = re.compile(r"['=+\-@]|.*[\x00-\x1f\x7f-\x9f]", re.DOTALL)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", re.IGNORECASE)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
ESCAPED = re.compile(r"\\(x[0-9a-f]{2}|[\\tnr])")


def escape(value: Any) -> Any:
    """Escape a string that a spreadsheet would run or show differently; return other values unchanged."""
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    if not DANGEROUS.match(text) or NUMBER.fullmatch(text):
        return text
    return "'" + CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escape_all(values: Iterable[Any]) -> list[Any]:
    """Escape the cells of a row."""
    return list(map(escape, values))


def unescape(cell: str) -> str:
    """Return the text of an escaped cell."""
    if not cell.startswith("'"):
        return cell
    return ESCAPED.sub(lambda found: found[0].encode("ascii").decode("unicode_escape"), cell[1:])


def read_metrics(file: Path) -> tuple[list[str], list[list[str]]]:
    """Read the columns and rows of a table of metrics; return empty lists for other files.

    Damaged rows, such as half a line after a crash, are skipped. Cells are numbers or empty.
    """
    data = file.read_bytes()
    head, *lines = data[: data.rfind(b"\n") + 1].decode(errors="replace").split("\n")
    try:
        columns = [unescape(cell) for cell in next(csv.reader([head.rstrip("\r")]), [])]
    except csv.Error:
        columns = []
    if "step" not in columns:
        return [], []
    step = columns.index("step")
    rows = (line.rstrip("\r").split(",") for line in lines)
    complete = (row for row in rows if len(row) == len(columns) and row[step])
    return columns, [row for row in complete if all(not cell or is_numeric(cell) for cell in row)]
