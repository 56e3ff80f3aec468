"""Metrics as a CSV table in the run folder."""

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
"""Between two writes: opening the file takes as long as a step of a small network."""

log = logging.getLogger(__name__)


class MetricsCSV(Logger):
    """Table with a row per logged step and a column per metric, appended once a second.

    Lightning's `CSVLogger` deletes the table of a folder that it is opened in again; this one continues it. A
    resumed run continues from the table at its checkpoint. Rows wait while the file cannot be written.

    Args:
        file: the table.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = Path(file)
        self._columns: list[str] = []
        self._row: dict[str, Any] = {}  # of the present step
        self._waiting: list[dict[str, Any]] = []
        self._written_at = time.monotonic()
        self._is_open = False
        self._num_rows = 0  # finished rows of the file
        self._end = 0  # where they end, bytes; an unfinished row follows
        self._outage = Outage(
            self.file, "rows are kept until it can be written again, lost if the run ends before"
        )
        self._restored: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return ""  # the table stands in the run folder itself

    @property
    def version(self) -> str:
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> Path:
        return self.file

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration stands in the run folder."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add metrics to the row of a step, which ends when another step's starts."""
        if self._row and self._row["step"] != step:
            self._waiting.append(self._row)
            self._row = {}
            if time.monotonic() - self._written_at >= WRITE_INTERVAL_S:
                self._append()
        self._row |= {"step": step, **metrics}

    @rank_zero_only
    def save(self) -> None:
        """Write all rows; the last may grow still."""
        if self._row or self._waiting:
            self._append(unfinished=self._row)

    @rank_zero_only
    def state_dict(self) -> dict[str, Any]:
        """Write all rows; return the extent of the table, for a checkpoint."""
        self.save()
        if self._restored and not self._is_open:
            with suppress(OSError):  # reported by `save`
                self._open({})
        return {"rows": self._num_rows, "columns": list(self._columns), "row": dict(self._row)}

    @rank_zero_only
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's table, once the next row is written."""
        self._restored = state
        self._row = dict(state["row"])
        self._waiting = []
        self._is_open = False

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rest; nothing where a resumed run has logged nothing."""
        is_untouched = not self._is_open and not self._waiting and self._row == self._restored.get("row")
        if (self._row or self._waiting) and not is_untouched:
            self._append(unfinished=self._row, now=True)

    def _append(self, unfinished: Mapping[str, Any] | None = None, *, now: bool = False) -> None:
        """Write the waiting rows, and an unfinished one, which the next write replaces.

        Rows of a failed write wait for the next one. With `now` it is tried right after a failure too.
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
        new = [*self._waiting, *([unfinished] if unfinished else [])]
        if not self._is_open:
            self._open(new[0])
        columns = list(dict.fromkeys([*self._columns, *(name for row in new for name in row)]))
        if columns != self._columns or not self.file.exists():
            self._write_table(columns, self._read_table()[1][: self._num_rows])
        finished = _to_csv(self._columns, self._waiting)
        data = finished + _to_csv(self._columns, [unfinished] if unfinished else [])
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
        self._num_rows += len(self._waiting)
        self._waiting = []

    def _open(self, first: Mapping[str, Any]) -> None:
        """Continue an existing table up to a checkpoint's extent, or up to the row `first`."""
        if self.file.exists():
            columns, rows = self._read_table()
            if self._restored:
                columns = list(self._restored["columns"])
                rows = [{name: row.get(name, "") for name in columns} for row in rows]
                rows = rows[: self._restored["rows"]]
            else:  # a finished run only adds to the row of its last step
                last = first["step"] - 1 if "train/loss" in first else first["step"]
                rows = [row for row in rows if row["step"].isdigit() and int(row["step"]) <= last]
            self._write_table(columns, rows)
        self._is_open = True

    def _read_table(self) -> tuple[list[str], list[dict[str, Any]]]:
        """Return columns and rows of the file; none if it is missing or, with a warning, damaged."""
        try:
            columns, rows = read_metrics(self.file)
            if not columns and self.file.stat().st_size:
                log.warning("%s is damaged: it begins anew", self.file)
        except FileNotFoundError:
            return [], []
        return columns, [dict(zip(columns, row, strict=True)) for row in rows]

    def _write_table(self, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace the table atomically."""
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
        self._columns, self._num_rows, self._end = list(columns), len(rows), len(data)


def _to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(escape_all(row.get(name, "") for name in columns) for row in rows)
    return text.getvalue().encode()
