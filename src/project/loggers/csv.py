"""Metrics as a table that any tool reads."""

import csv
import io
import logging
import os
import time
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from project.runtime.csv_cells import escape_all, read_metrics
from project.runtime.files import Outage, write_at

INTERVAL_S = 1.0
"""Between two times that rows are written: opening the file takes as long as a step of a small network."""

log = logging.getLogger(__name__)


class MetricsCSV(Logger):
    """One row a step at which something was logged, one column a metric, appended as training goes, once a
    second.

    Lightning's own `CSVLogger` deletes the table of a folder that it is opened in again; this one continues
    it. A resumed run goes on with the table as it was when its checkpoint was written. While the file cannot
    be written its rows are kept.

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
        self._outage = Outage(
            self.file, "rows are kept until it can be written again, lost if the run ends before"
        )
        self._restored: dict[str, Any] = {}

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
    def state_dict(self) -> dict[str, Any]:
        """How far the table is, for a checkpoint, after writing all rows: a run that is resumed from there
        does not measure them again.
        """
        self.save()
        if self._restored and not self._opened:
            with suppress(OSError):  # told already
                self._open({})
        return {"rows": self._rows, "columns": list(self._columns), "row": dict(self._row)}

    @rank_zero_only
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, when the next row is written."""
        self._restored = state
        self._row = dict(state["row"])
        self._waiting = []
        self._opened = False

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left; nothing where a run that was to go on came to nothing."""
        if self._restored and not self._opened and not self._waiting and self._row == self._restored["row"]:
            return
        if self._row or self._waiting:
            self._append(unfinished=self._row, now=True)

    def _append(self, unfinished: Mapping[str, Any] | None = None, *, now: bool = False) -> None:
        """Write the rows that wait, and one that is being filled, over which the next time begins.

        If that fails they wait on, for the next time or, with `now`, in spite of a failure a moment ago.
        """
        if self._outage.tried_just_now and not now:
            return
        self._written = time.monotonic()
        try:
            self._write(unfinished)
        except OSError as error:
            self._outage.begin(error)
        else:
            self._outage.end()

    def _write(self, unfinished: Mapping[str, Any] | None) -> None:
        new = [*self._waiting, *([unfinished] if unfinished else [])]
        if not self._opened:
            self._open(new[0])
        columns = list(dict.fromkeys([*self._columns, *(name for row in new for name in row)]))
        if columns != self._columns or not self.file.exists():
            self._write_table(columns, self._read_whole_rows()[1][: self._rows])
        finished = _as_text(self._columns, self._waiting)
        data = finished + _as_text(self._columns, [unfinished] if unfinished else [])
        descriptor = os.open(self.file, os.O_WRONLY)
        try:
            write_at(descriptor, self._end, data)
            os.ftruncate(descriptor, self._end + len(data))
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, self._end)  # no half rows
            raise
        finally:
            os.close(descriptor)
        self._end += len(finished)
        self._rows += len(self._waiting)
        self._waiting = []

    def _open(self, first: Mapping[str, Any]) -> None:
        """Continue a table that is there already, as far as it counts: as a checkpoint says, or up to the
        row `first`.
        """
        if self.file.exists():
            columns, rows = self._read_whole_rows()
            if self._restored:
                columns = list(self._restored["columns"])
                rows = [{name: row.get(name, "") for name in columns} for row in rows]
                rows = rows[: self._restored["rows"]]
            else:  # a run that was done trains no step anew, and only adds to its last row's step
                last = first["step"] - 1 if "train/loss" in first else first["step"]
                rows = [row for row in rows if row["step"].isdigit() and int(row["step"]) <= last]
            self._write_table(columns, rows)
        self._opened = True

    def _read_whole_rows(self) -> tuple[list[str], list[dict[str, Any]]]:
        """Columns and rows of the file, none if it is not there; nor, which is told, if it is no table of
        ours.
        """
        try:
            columns, rows = read_metrics(self.file)
            if not columns and self.file.stat().st_size:
                log.warning("%s is damaged: it begins anew", self.file)
        except FileNotFoundError:
            return [], []
        return columns, [dict(zip(columns, row, strict=True)) for row in rows]

    def _write_table(self, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the table anew, all or nothing."""
        data = _as_text(columns, [dict(zip(columns, columns, strict=True)), *rows])
        partial = self.file.with_suffix(".csv.partial")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.replace(self.file)
        except OSError:
            with suppress(OSError):
                partial.unlink()
            raise
        self._columns, self._rows, self._end = list(columns), len(rows), len(data)


def _as_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(escape_all(row.get(name, "") for name in columns) for row in rows)
    return text.getvalue().encode()
