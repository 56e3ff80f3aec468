"""Curves of running runs: only what was appended to `metrics.csv` is read."""

import csv
import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from project.runs.metric_names import is_of_split
from project.runtime.csv_files import unescape
from project.runtime.text import is_numeric

MAX_POINTS = 400
"""Number of points of a curve from which on neighbors are averaged in pairs."""
MAX_CURVES = 5_000
"""Number of curves in memory, after which all are read again."""


@dataclass
class Curve:
    """One metric of a run, read up to the last complete line of its file.

    Attributes:
        x: optimizer steps.
        y: values; None if they are not finite.
        version: changes when points were added.
        names: columns of the file with values over training.
    """

    file: Path
    metric: str
    x: list[float] = field(default_factory=list)
    y: list[float | None] = field(default_factory=list)
    version: int = 0
    names: list[str] = field(default_factory=list)
    _signature: tuple[int, int] = (0, -1)  # inode, size
    _offset: int = 0
    _columns: list[str] = field(default_factory=list)
    _stride: int = 1  # values per point
    _partial: list[tuple[float, float]] = field(default_factory=list)

    def read(self) -> bool:
        """Read appended lines; return true if there are new points."""
        try:
            with self.file.open("rb") as stream:
                found = os.fstat(stream.fileno())
                signature = (found.st_ino, found.st_size)
                if signature == self._signature:
                    return False
                if signature[0] != self._signature[0] or signature[1] < self._offset:
                    self._restart()
                stream.seek(self._offset)
                data = stream.read()
        except OSError:
            return False
        self._signature = signature
        end = data.rfind(b"\n") + 1
        self._offset += end
        before = len(self.x), self._stride
        for line in data[:end].decode(errors="replace").splitlines():
            self._add(line)
        return (len(self.x), self._stride) != before

    def _restart(self) -> None:
        self.x, self.y, self._offset, self._columns, self._stride, self._partial = [], [], 0, [], 1, []

    def _add(self, line: str) -> None:
        if not self._columns or line.startswith("step,") or ",step," in line:  # new columns begin a new table
            try:
                columns = [unescape(cell) for cell in next(csv.reader([line]), [])]
            except csv.Error:
                return
            if "step" in columns:
                self._columns = columns
                self.names = [
                    name
                    for name in columns
                    if name not in ("step", "epoch") and not is_of_split(name, "test")
                ]
            return
        cells = line.split(",")
        if self.metric not in self._columns or len(cells) != len(self._columns):
            return
        step, value = cells[self._columns.index("step")], cells[self._columns.index(self.metric)]
        if is_numeric(step) and is_numeric(value) and math.isfinite(float(step)):
            self._append(float(step), float(value))

    def _append(self, x: float, y: float) -> None:
        self._partial.append((x, y))
        if len(self._partial) < self._stride:
            return
        count = len(self._partial)
        mean = math.fsum(value for _, value in self._partial) / count
        self.x.append(math.fsum(step for step, _ in self._partial) / count)
        self.y.append(mean if math.isfinite(mean) else None)
        self._partial = []
        if len(self.x) >= 2 * MAX_POINTS:
            self.x = [(a + b) / 2 for a, b in zip(self.x[::2], self.x[1::2], strict=True)]
            pairs = zip(self.y[::2], self.y[1::2], strict=True)
            self.y = [None if a is None or b is None else (a + b) / 2 for a, b in pairs]
            self._stride *= 2


class CurveReader:
    """Curves of several runs and metrics, with a version for each."""

    def __init__(self) -> None:
        self._curves: dict[tuple[str, str], Curve] = {}
        self._version = 0
        self._lock = threading.Lock()  # the server answers in several threads

    def read(self, folders: Sequence[str], metrics: Sequence[str], since: int) -> dict[str, Any]:
        """Return the curves that changed after a version.

        Args:
            folders: run folders.
            metrics: names of metrics.
            since: version of the last answer; 0 for all curves.
        """
        with self._lock:
            return self._read(folders, metrics, since)

    def _read(self, folders: Sequence[str], metrics: Sequence[str], since: int) -> dict[str, Any]:
        if len(self._curves) + len(folders) * len(metrics) > MAX_CURVES:
            self._curves.clear()
        changed, names = [], dict[str, None]()
        for folder in folders:
            for metric in metrics or ("",):
                curve = self._curves.setdefault((folder, metric), Curve(Path(folder) / "metrics.csv", metric))
                if curve.read():
                    self._version += 1
                    curve.version = self._version
                names |= dict.fromkeys(curve.names)
                if curve.version > since and curve.x:
                    changed.append({"run": folder, "metric": metric, "x": curve.x, "y": curve.y})
        return {"version": self._version, "names": list(names), "curves": changed}
