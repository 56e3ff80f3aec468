"""State of the runs of a page, with a version for each row, so that only changed rows are sent."""

import math
import platform
import shlex
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from project.errors import InputError
from project.reporting.runs.logs import last_lines
from project.reporting.runs.run_index import DEAD, Record, RunIndex, elapsed_s, without_trials
from project.reporting.runs.run_table import RunTable
from project.runs.comparison import best_line
from project.runs.folders import FRESH_S, is_locked
from project.runs.run_folder import RunFolder
from project.runs.sweep_jobs import FINISHED
from project.runtime.text import duration, plural, strip_control

REFRESH_S = 1.0
"""Minimum time between two looks at the folders [s]."""
FAILED = ("failed", "interrupted", DEAD, "damaged")
ACTIVE = ("running", "starting")
MAX_FAILURES = 30
"""Maximum number of failures with the end of their logs."""


class LiveRuns:
    """Runs below some folders, as rows of a page.

    Args:
        tops: folders.
        refresh_s: minimum time between two looks at the folders [s].

    Raises:
        InputError: a folder is missing.
    """

    def __init__(self, tops: Sequence[Path], refresh_s: float = REFRESH_S) -> None:
        self.index = RunIndex(tops)
        self.refresh_s = refresh_s
        self.table = RunTable([])
        self.version = 0
        self.error = ""
        self._ids: dict[str, int] = {}
        self._rows: dict[str, dict[str, Any]] = {}
        self._versions: dict[str, int] = {}
        self._lock = threading.Lock()
        self._next_refresh = 0.0
        self._is_first = True
        self.refresh()

    def refresh(self, *, now: bool = False) -> None:
        """Look at the folders, unless that happened less than `refresh_s` ago."""
        if not now and time.monotonic() < self._next_refresh:
            return
        try:
            changed = self.index.refresh()
            self.error = ""
        except (InputError, OSError) as error:
            self.error = str(error)
            changed = False
        if changed or self._is_first:
            self._is_first = False
            self._update_rows()
        self._next_refresh = time.monotonic() + self.refresh_s

    def _update_rows(self) -> None:
        self.table = RunTable(without_trials(list(self.index.records.values())), self.table)
        self.version += 1
        rows = {record.key: self._row(record) for record in self.table.records}
        for key, row in rows.items():
            if row != self._rows.get(key):
                self._versions[key] = self.version
        self._rows = rows

    def _row(self, record: Record) -> dict[str, Any]:
        number = self._ids.setdefault(record.key, len(self._ids))
        cells = {
            column.name: self.table.text_or_number(record, column)
            for column in self.table.columns
            if column.kind != "fact"
        }
        row = {
            "id": number,
            "key": self._short_key(record),
            "path": RunFolder(Path(record.key)).shown,
            "name": record.name,
            "state": record.state,
            "cells": {name: _clean(value) for name, value in cells.items() if value is not None},
            "epoch": record.epoch,
            "epochs": record.epochs,
            "time": record.duration_s,
            "started": record.started,
            "tags": list(record.notes.tags),
            "note": record.notes.note,
            "error": strip_control(record.error),
        }
        if record.state in FAILED:
            number_before = sum(old["state"] in FAILED for old in self._rows.values())
            old = self._rows.get(record.key, {})
            if old.get("state") == record.state and old.get("error") == row["error"]:
                row["log"] = old.get("log", "")
            elif number_before < MAX_FAILURES:
                row["log"] = last_lines(Path(record.key))
        return row

    def _short_key(self, record: Record) -> str:
        """Return the path of a run below the folder of the page, which links to it name."""
        path = Path(record.key)
        top = next((top for top in self.index.tops if path != top and path.is_relative_to(top)), None)
        return str(path.relative_to(top)) if top and len(self.index.tops) == 1 else str(path)

    def folder(self, number: int) -> Path | None:
        """Return the folder of a row; None without one."""
        with self._lock:
            return next((Path(key) for key, one in self._ids.items() if one == number), None)

    def folders(self, numbers: Iterable[int]) -> dict[int, str]:
        """Return the folders of rows by their numbers."""
        wanted = set(numbers)
        with self._lock:
            return {one: key for key, one in self._ids.items() if one in wanted}

    def read_again(self, folder: Path) -> None:
        """Read a run again at once."""
        with self._lock:
            self.index.read_again(str(folder))
            self.refresh(now=True)

    def state(self, since: int, condition: str) -> dict[str, Any]:
        """Return what changed after a version.

        Args:
            since: version of the last answer; 0 for all rows.
            condition: conditions on columns, separated by spaces; see `RunTable.select`.
        """
        with self._lock:
            self.refresh()
            match, error = self._match(condition)
            is_new = self.version > since
            content: dict[str, Any] = {
                "version": self.version,
                "match": match,
                "filter_error": error,
                "summary": self._summary(),
            }
            if is_new:
                content["columns"] = [
                    {"name": column.name, "title": column.title, "kind": column.kind}
                    for column in self.table.columns
                ]
                content["monitor"] = self.table.monitor
                content["larger_is_better"] = self.table.larger_is_better
                content["ids"] = [row["id"] for row in self._rows.values()]
                content["rows"] = [row for key, row in self._rows.items() if self._versions[key] > since]
            return content

    def _match(self, condition: str) -> tuple[list[int] | None, str]:
        if not condition.strip():
            return None, ""
        try:
            words = shlex.split(condition)
        except ValueError:
            return None, "filter: a quote is not closed"
        try:
            return [self._ids[record.key] for record in self.table.select(words)], ""
        except InputError as error:
            return None, strip_control(str(error))

    def _summary(self) -> dict[str, Any]:
        """Return counts, the best point, progress and time left."""
        records = self.table.records
        states = Counter(record.state for record in records)
        ranked = self.table.comparison
        best = ranked.best if ranked else None
        parts = [_done_fraction(record) for record in records]
        left_s = time_left_s(records)
        is_active = any(states[state] for state in ACTIVE)
        return {
            "states": dict(states.most_common()),
            "count": len(records),
            "fraction": math.fsum(parts) / len(parts) if parts else 0.0,
            "left": _rounded(left_s) if left_s is not None and is_active else "",
            "best": self._ids.get(str(best.folder)) if best else None,
            "best_line": best_line(ranked) if ranked and best else "",
            "end": self.error or self._end(states),
            "is_active": is_active or (bool(states["waiting"]) and self._is_scheduled()),
        }

    def _is_scheduled(self) -> bool:
        """Return True if a process runs the sweep, as far as the files tell."""
        sweep = self.index.sweep
        if sweep is None:
            return False
        try:
            host = str(sweep.read_record().get("host", ""))
        except InputError:
            host = ""
        locked = is_locked(sweep.path) if host == platform.node() else None
        if locked is not None:
            return locked
        try:
            return time.time() - sweep.ledger.file.stat().st_mtime < FRESH_S
        except OSError:
            return False

    def _end(self, states: Counter[str]) -> str:
        """Return a line that says that the sweep or run has ended; empty while it runs."""
        if not self.table.records:
            return "" if self._is_scheduled() else "There is no run in this folder yet."
        if any(states[state] for state in ACTIVE):
            return ""
        left = states["waiting"] + states["interrupted"] + states[DEAD]
        if self.index.sweep is not None:
            if left and self._is_scheduled():
                return ""
            shown = RunFolder(self.index.sweep.path).shown
            if left:
                return (
                    f"The sweep has stopped with {plural(left, 'unfinished job')}; "
                    f"continue it with python scripts/train.py resume={shlex.quote(shown)}"
                )
            return "The sweep has ended."
        if len(self.table.records) == 1:
            (record,) = self.table.records
            words = {"done": "is done", DEAD: "is dead: its process ended without recording it"}
            return f"The run {words.get(record.state, f'has ended: {record.state}')}."
        return ""


def _clean(value: Any) -> Any:
    return strip_control(value) if isinstance(value, str) else value


def _rounded(left_s: float) -> str:
    """Return a duration without the seconds of minutes, as it is an estimate."""
    return duration(left_s if left_s < 90 else 60 * round(left_s / 60)).removesuffix(" 0 s")


def _done_fraction(record: Record) -> float:
    """Return the finished fraction of a job, by its epochs."""
    if record.state in FINISHED or record.state == "damaged":
        return 1.0
    return min(1.0, (record.epoch or 0.0) / record.epochs) if record.epochs else 0.0


def time_left_s(records: Sequence[Record], now: float | None = None) -> float | None:
    """Estimate the time until all jobs have ended [s]; None without a basis.

    Running jobs go on at their own speed, waiting ones take as long as the finished ones on average, and as
    many run at once as now.
    """
    now = time.time() if now is None else now
    ended = [record.duration_s for record in records if record.state in FINISHED and record.duration_s]
    running = [record for record in records if record.state in ACTIVE]
    rests = []
    for record in running:
        spent = elapsed_s(record, now) or 0.0
        if fraction := _done_fraction(record):
            rests.append(spent * (1 / fraction - 1))
            ended.append(spent / fraction)
    if not ended or not running:
        return None
    mean = math.fsum(ended) / len(ended)
    rests += [mean] * (len(running) - len(rests))
    waiting = sum(record.state == "waiting" for record in records)
    return max(max(rests), (math.fsum(rests) + mean * waiting) / len(running))
