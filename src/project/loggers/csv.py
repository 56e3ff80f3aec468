"""Logger that writes metrics to a CSV file in the run folder."""

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

from project.runtime.atomic_files import Outage, write_at
from project.runtime.csv_files import escape_all, read_metrics

WRITE_INTERVAL_S = 1.0
"""Minimum time between two writes, s; opening the file takes as long as a step of a small network."""

log = logging.getLogger(__name__)


class MetricsCSV(Logger):
    """CSV file with one row per logged step and one column per metric, written at most once per second.

    Lightning's `CSVLogger` deletes an existing file; this logger appends to it. A resumed run first removes
    rows that were written after its checkpoint. While the file cannot be written, rows are kept in memory.

    Args:
        file: path of the CSV file.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = Path(file)
        self._columns: list[str] = []
        self._current_row: dict[str, Any] = {}  # of the current step
        self._pending_rows: list[dict[str, Any]] = []
        self._written_at = time.monotonic()
        self._is_open = False
        self._num_rows = 0  # finished rows in the file
        self._end_offset = 0  # end of the finished rows, bytes; an unfinished row follows
        self._outage = Outage(
            self.file, "rows are kept until it can be written again, lost if the run ends before"
        )
        self._restored: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return ""  # no subfolder: the file lies in the run folder

    @property
    def version(self) -> str:
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> Path:
        return self.file

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run folder contains the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add metrics to the row of a step; metrics of another step finish the row."""
        if self._current_row and self._current_row["step"] != step:
            self._pending_rows.append(self._current_row)
            self._current_row = {}
            if time.monotonic() - self._written_at >= WRITE_INTERVAL_S:
                self._write_pending()
        self._current_row |= {"step": step, **metrics}

    @rank_zero_only
    def save(self) -> None:
        """Write all rows, including the unfinished last row."""
        if self._current_row or self._pending_rows:
            self._write_pending(unfinished=self._current_row)

    @rank_zero_only
    def state_dict(self) -> dict[str, Any]:
        """Write all rows; return the number of rows, the columns and the last row, for a checkpoint."""
        self.save()
        if self._restored and not self._is_open:
            with suppress(OSError):  # reported by `save`
                self._open({})
        return {"rows": self._num_rows, "columns": list(self._columns), "row": dict(self._current_row)}

    @rank_zero_only
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the table of a checkpoint when the next row is written."""
        self._restored = state
        self._current_row = dict(state["row"])
        self._pending_rows = []
        self._is_open = False

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the remaining rows, unless a resumed run has logged nothing."""
        is_untouched = (
            not self._is_open and not self._pending_rows and self._current_row == self._restored.get("row")
        )
        if (self._current_row or self._pending_rows) and not is_untouched:
            self._write_pending(unfinished=self._current_row, now=True)

    def _write_pending(self, unfinished: Mapping[str, Any] | None = None, *, now: bool = False) -> None:
        """Write the pending rows and an unfinished row, which the next write replaces.

        Rows of a failed write remain pending.

        Args:
            unfinished: the unfinished row, if any.
            now: if True, write even if the last write has just failed.
        """
        if self._outage.tried_just_now and not now:
            return
        self._written_at = time.monotonic()
        try:
            self._write(unfinished)
        except OSError as error:
            self._outage.begin(error)
        else:
            self._outage.end()

    def _write(self, unfinished: Mapping[str, Any] | None) -> None:
        new = [*self._pending_rows, *([unfinished] if unfinished else [])]
        if not self._is_open:
            self._open(new[0])
        columns = list(dict.fromkeys([*self._columns, *(name for row in new for name in row)]))
        if columns != self._columns or not self.file.exists():
            self._write_table(columns, self._read_table()[1][: self._num_rows])
        finished = _to_csv(self._columns, self._pending_rows)
        data = finished + _to_csv(self._columns, [unfinished] if unfinished else [])
        descriptor = os.open(self.file, os.O_WRONLY)
        try:
            write_at(descriptor, self._end_offset, data)
            os.ftruncate(descriptor, self._end_offset + len(data))
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, self._end_offset)  # removes partial rows
            raise
        finally:
            os.close(descriptor)
        self._end_offset += len(finished)
        self._num_rows += len(self._pending_rows)
        self._pending_rows = []

    def _open(self, first: Mapping[str, Any]) -> None:
        """Truncate an existing file to the rows of a checkpoint, or to those before the row `first`."""
        if self.file.exists():
            columns, rows = self._read_table()
            if self._restored:
                columns = list(self._restored["columns"])
                rows = [{name: row.get(name, "") for name in columns} for row in rows]
                rows = rows[: self._restored["rows"]]
            else:  # the evaluation of a finished run adds to the row of its last step
                last = first["step"] - 1 if "train/loss" in first else first["step"]
                rows = [row for row in rows if row["step"].isdigit() and int(row["step"]) <= last]
            self._write_table(columns, rows)
        self._is_open = True

    def _read_table(self) -> tuple[list[str], list[dict[str, Any]]]:
        """Return columns and rows of the file; none if it is missing or (with a warning) damaged."""
        try:
            columns, rows = read_metrics(self.file)
            if not columns and self.file.stat().st_size:
                log.warning("%s is damaged; starting a new table", self.file)
        except FileNotFoundError:
            return [], []
        return columns, [dict(zip(columns, row, strict=True)) for row in rows]

    def _write_table(self, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace the file atomically."""
        data = _to_csv(columns, [dict(zip(columns, columns, strict=True)), *rows])
        partial = self.file.with_suffix(".csv.partial")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.replace(self.file)
        except OSError:
            with suppress(OSError):
                partial.unlink()
            raise
        self._columns, self._num_rows, self._end_offset = list(columns), len(rows), len(data)


def _to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(escape_all(row.get(name, "") for name in columns) for row in rows)
    return text.getvalue().encode()
