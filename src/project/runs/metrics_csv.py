"""The table of metrics in a run folder, as far as it is whole. Needs no torch."""

import csv
from pathlib import Path

from project.runtime.csv_cells import unescape


def read_metrics(file: Path) -> tuple[list[str], list[list[str]]]:
    """Read a table of metrics. What a crash or a power cut left in it, half a line or other bytes, is no row.

    Returns:
        The columns, and rows of as many cells, each a number or empty; neither if it is no table of metrics.

    Raises:
        OSError: it cannot be read.
    """
    data = file.read_bytes()
    head, *lines = data[: data.rfind(b"\n") + 1].decode(errors="replace").split("\n")
    try:
        columns = [unescape(cell) for cell in next(csv.reader([head.rstrip("\r")]), [])]
    except csv.Error:
        columns = []
    if "step" not in columns:
        return [], []
    rows = (line.rstrip("\r").split(",") for line in lines)
    step = columns.index("step")
    return columns, [
        row for row in rows if len(row) == len(columns) and row[step] and all(map(is_number, row))
    ]


def is_number(cell: str) -> bool:
    """Return true for a cell that holds a number or nothing."""
    try:
        float(cell or "0")
    except ValueError:
        return False
    return True
