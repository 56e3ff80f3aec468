"""Metrics as a table that any tool reads."""

import csv
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

INTERVAL_S = 1.0
"""Between two times that rows are written: opening the file takes as long as a step of a small network."""


class MetricsCSV(Logger):
    """One row a step at which something was logged, one column a metric, appended as training goes, once a
    second.

    Lightning's own `CSVLogger` deletes the table of a folder that it is opened in again; this one continues
    it, and drops the rows that a resumed run writes anew.

    Args:
        file: the table.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = Path(file)
        self._columns: list[str] = []
        self._row: dict[str, Any] = {}
        self._waiting: list[dict[str, Any]] = []
        self._written = time.monotonic()
        self._opened = False
        self._rows = 0  # in the table, and where they end, bytes; what follows is being filled
        self._end = 0

    @property
    def name(self) -> str:
        """Nothing: the table stands in the run folder itself."""
        return ""

    @property
    def version(self) -> str:
        """Nothing, likewise."""
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> Path:
        """The table's file."""
        return self.file

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration stands in the run folder already."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add metrics to the row of a step, which ends when the next step's begins."""
        if self._row and self._row["step"] != step:
            self._waiting.append(self._row)
            self._row = {}
            if time.monotonic() - self._written >= INTERVAL_S:
                self._append()
        self._row |= {"step": step, **metrics}

    @rank_zero_only
    def save(self) -> None:
        """Write all rows, that which is being filled too; it may grow all the same."""
        if self._row or self._waiting:
            self._append(unfinished=self._row)

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Write all rows: a run that is resumed from the checkpoint does not measure them again."""
        self.save()

    def _append(self, unfinished: Mapping[str, Any] | None = None) -> None:
        """Write the rows that wait, and one that is being filled, over which the next time begins."""
        self._written = time.monotonic()
        new = [*self._waiting, *([unfinished] if unfinished else [])]
        if not self._opened:
            self._open(new[0])
        known = {*self._columns}
        columns = [name for row in new for name in row if name not in known]
        if columns or not self.file.exists():
            rows = self._read()[: self._rows]
            self._columns += dict.fromkeys(columns)
            self._write(rows)
        with self.file.open("r+", newline="") as stream:
            stream.seek(self._end)
            writer = csv.DictWriter(stream, self._columns)
            writer.writerows(self._waiting)
            self._end = stream.tell()
            if unfinished:
                writer.writerow(unfinished)
            stream.truncate()
        self._rows += len(self._waiting)
        self._waiting = []

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()

    def _open(self, first: Mapping[str, Any]) -> None:
        """Continue a table that is there already, as of the row `first`."""
        self._opened = True
        if self.file.exists():
            with self.file.open(newline="") as stream:
                reader = csv.DictReader(stream)
                self._columns = list(reader.fieldnames or [])
                # A run resumed when it was done trains no step anew, and only adds to its last row's step.
                last = first["step"] - 1 if "train/loss" in first else first["step"]
                whole = [row for row in reader if None not in row and None not in row.values()]
                earlier = [row for row in whole if row["step"].isdigit() and int(row["step"]) <= last]
            self._write(earlier)

    def _read(self) -> list[dict[str, Any]]:
        if not self.file.exists():
            return []
        with self.file.open(newline="") as stream:
            return list(csv.DictReader(stream))

    def _write(self, rows: list[dict[str, Any]]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".csv.partial")
        with partial.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, self._columns)
            writer.writeheader()
            writer.writerows(rows)
            self._end = stream.tell()
        self._rows = len(rows)
        partial.replace(self.file)
