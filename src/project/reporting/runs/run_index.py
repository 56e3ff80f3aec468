"""Index of the runs below some folders, which reads only files that changed since the last time.

Nothing is written and no lock is taken, so that a running sweep is not disturbed.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from project.errors import InputError
from project.reporting.runs import notes
from project.reporting.runs.notes import Notes, read_notes
from project.runs.folders import has_died
from project.runs.results import (
    DURATION,
    DamagedError,
    Run,
    find_run_folders,
    is_number,
    read_run,
    read_status,
)
from project.runs.sweep_folder import find_sweep
from project.runs.sweep_jobs import Job
from project.runtime.secrets import redact_text

DEAD = "dead"
"""State of a run that says that it is running, but whose process has ended."""
FILES = ("status.json", "config.yaml", notes.NAME)
SCAN_S = 5.0
"""Time between two searches for new run folders [s]; longer if a search takes long."""
SCAN_SHARE = 0.05
"""Largest fraction of the time spent searching for folders."""
PROGRESS = ("epoch", "epochs")


@dataclass(frozen=True)
class Record:
    """Run or waiting job of a sweep, as a row of a table.

    Args:
        key: path of the run folder, which identifies the record.
        name: last part of the path.
        run: content of the run folder; None for a job that has not started.
        state: state of the run, `dead`, `waiting` or `damaged`.
        metrics: metrics of a finished run; latest values of another one.
        epoch: number of finished epochs; None if unknown.
        epochs: planned number of epochs; None if unknown.
        duration_s: duration [s]; of a running run until now; None if unknown.
        finished: end (ISO 8601), or empty.
        settings: overrides in which the jobs of a sweep differ; used without a run.
        notes: tags and note.
        error: reason of a failure, without secrets.
    """

    key: str
    name: str
    run: Run | None
    state: str
    metrics: Mapping[str, float]
    epoch: float | None = None
    epochs: float | None = None
    duration_s: float | None = None
    finished: str = ""
    settings: Mapping[str, str] | None = None
    notes: Notes = field(default_factory=Notes)
    error: str = ""

    @property
    def started(self) -> str:
        """Start (ISO 8601), or empty."""
        return self.run.started if self.run else ""


class RunIndex:
    """Records of all runs below some folders, and of the jobs of a sweep that have not started.

    Args:
        tops: folders; a sweep folder, a run folder, or a folder above them.
        scan_s: time between two searches for new folders [s].

    Attributes:
        records: by path of the run folder, in the order of their names.
        sweep: the folder, if the only folder is a sweep.
        jobs: jobs of the sweep by name.

    Raises:
        InputError: a folder is missing.
    """

    def __init__(self, tops: Sequence[Path], scan_s: float = SCAN_S) -> None:
        self.tops = list(tops)
        self.scan_s = scan_s
        self.records: dict[str, Record] = {}
        self.sweep = find_sweep(self.tops[0]) if len(self.tops) == 1 else None
        self.jobs: dict[str, Job] = {}
        self._ledger: tuple[int, ...] = ()
        self._signatures: dict[str, tuple[Any, ...]] = {}
        self._folders: list[Path] = []
        self._next_scan = 0.0
        self.refresh()

    def refresh(self) -> bool:
        """Read what changed; return true if a record changed.

        Raises:
            InputError: the folder was removed.
        """
        self._read_ledger()
        due = time.monotonic() >= self._next_scan
        if due:
            began = time.monotonic()
            self._folders = find_run_folders(self.tops)
            spent = time.monotonic() - began
            self._next_scan = time.monotonic() + max(self.scan_s, spent / SCAN_SHARE)
        folders = dict.fromkeys(map(str, self._folders))
        folders |= {
            str(self.sweep.path / name): None for name in self.jobs if self.sweep and self.jobs[name].started
        }
        records = {key: record for key in folders if (record := self._read(key, stat=due)) is not None}
        known = {record.name for record in records.values()}
        for name, job in self.jobs.items():
            if name not in known and self.sweep is not None:
                records[str(self.sweep.path / name)] = self._of_job(job)
        changed = records != self.records
        self.records = records
        return changed

    def _read_ledger(self) -> None:
        if self.sweep is None:
            return
        signature = _signature(str(self.sweep.ledger.file))
        if signature != self._ledger:
            self._ledger = signature
            self.jobs = self.sweep.read_jobs() or self.jobs

    def _read(self, key: str, *, stat: bool) -> Record | None:
        """Return the record of a run folder, read again if a file changed; None if there is no run.

        Args:
            key: path of the folder.
            stat: look for changes also if the run has ended.
        """
        old = self.records.get(key)
        if old is not None and old.state in ("done", "pruned") and not stat:
            return old
        folder = Path(key)
        signature = tuple(_signature(f"{key}/{name}") for name in FILES)
        if not signature[0]:
            return None
        if old is None or signature != self._signatures.get(key):
            self._signatures[key] = signature
            return _read_record(folder, has_notes=bool(signature[-1]))
        if old.run is not None and old.run.state == "running":  # its process may have ended
            new = _read_record(folder, has_notes=bool(signature[-1]))
            return new if new != old else old
        return old

    def search_again(self) -> None:
        """Search for new folders at the next refresh."""
        self._next_scan = 0.0

    def read_again(self, key: str) -> None:
        """Read a record again at the next refresh, such as after its notes changed."""
        self._signatures.pop(key, None)
        self.records.pop(key, None)

    def _of_job(self, job: Job) -> Record:
        assert self.sweep is not None
        return Record(
            key=str(self.sweep.path / job.name),
            name=job.name,
            run=None,
            state="starting" if job.state == "running" else job.state,
            metrics={},
            duration_s=job.duration_s,
            finished=job.finished or "",
            settings=job.settings,
            error=redact_text(job.error or ""),
        )


def _read_record(folder: Path, *, has_notes: bool) -> Record:
    try:
        status = read_status(folder)
        run = read_run(folder, status)
    except DamagedError as error:
        return Record(str(folder), folder.name, None, "damaged", {}, error=str(error))
    found = status.get("progress")
    progress = found if isinstance(found, dict) else {}
    latest = {
        str(name): float(value)
        for name, value in progress.items()
        if name not in PROGRESS and is_number(value)
    }
    metrics = {name: value for name, value in run.metrics.items() if name != DURATION}
    return Record(
        key=str(folder),
        name=folder.name,
        run=run,
        state=DEAD if run.state == "running" and has_died(folder, status) else run.state,
        metrics=metrics or latest,
        epoch=_number(progress.get("epoch")),
        epochs=_number(progress.get("epochs")) or None,
        duration_s=_number(status.get(DURATION)) if run.state != "running" else None,
        finished=str(status.get("finished") or ""),
        notes=read_notes(folder) if has_notes else Notes(),
        error=redact_text(run.error),
    )


def _number(value: object) -> float | None:
    return float(value) if is_number(value) else None


def _signature(file: str) -> tuple[int, ...]:
    """Return values that change with a file; empty without the file."""
    try:
        found = os.stat(file)  # noqa: PTH116 (faster: there may be thousands)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def elapsed_s(record: Record, now: float | None = None) -> float | None:
    """Return the duration of a run [s]; for a running one, the time until now; None if unknown."""
    if record.duration_s is not None or record.state != "running":
        return record.duration_s
    try:
        return max(
            0.0, (time.time() if now is None else now) - datetime.fromisoformat(record.started).timestamp()
        )
    except ValueError:
        return None


def read_records(folders: Sequence[str | Path]) -> list[Record]:
    """Return the records of all runs below some folders once, without trials unless all are trials.

    Raises:
        InputError: a folder is missing, or there is no run.
    """
    tops = [Path(folder).expanduser() for folder in folders]
    records = list(RunIndex(tops).records.values())
    if not records:
        raise InputError(
            f"runs={','.join(map(str, tops))}: contains no run; give a folder with runs, such as outputs"
        )
    return without_trials(records)


def without_trials(records: Sequence[Record]) -> list[Record]:
    """Return the records that are not trials (`debug=…`, `tune=…`); all if all are trials."""
    return [record for record in records if not (record.run and record.run.trial)] or list(records)
