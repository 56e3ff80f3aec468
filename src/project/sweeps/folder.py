"""A sweep's folder: its record, the configuration files as they were, and one run folder a job."""

import json
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from project.errors import InputError
from project.redaction import holds_secret, redact
from project.runs.claims import claim
from project.runs.folder import RunFolder
from project.runs.provenance import git_state, now, versions
from project.sweeps.fingerprint import differences, fingerprint
from project.sweeps.jobs import Job
from project.sweeps.ledger import Ledger

PACKAGE = Path(__file__).resolve().parent.parent
ENTRY = re.compile(
    r"""\s*(?:- )?['"]?([\w-]+)['"]?:\s+(?!(?:null|true|false|[-\d.]+)\s*$)['"]?[^\s'"#$?{\[]"""
)
"""A line of YAML with a key and a word that is written out."""
LAST_BREATH_S = 10.0
"""Seconds that a killed sweep's processes may need to disappear."""


class SweepFolder:
    """What stands where in a sweep's folder.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.record_file = self.path / "sweep.json"
        self.conf = self.path / "conf"
        self.log_file = self.path / "sweep.log"
        self.ledger = Ledger(self.path / "jobs.jsonl")

    @property
    def shown(self) -> str:
        """Path as a user would type it."""
        return RunFolder(self.path).shown

    def run(self, name: str) -> RunFolder:
        """A job's run folder."""
        return RunFolder(self.path / name)

    def read_record(self) -> dict[str, Any]:
        """What the sweep is: the command line's overrides, its start, the code's state.

        Raises:
            InputError: the file is damaged.
        """
        try:
            return json.loads(self.record_file.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise InputError(f"resume={self.shown}: {self.record_file} is damaged ({error})") from error

    def read_jobs(self) -> dict[str, Job]:
        """The jobs on record, by the name of their folders; none where the record is damaged."""
        try:
            return {job.name: job for job in self.ledger.read().values()}
        except (OSError, ValueError, TypeError):  # the runs' folders tell as much
            return {}

    def start_record(self, overrides: Sequence[str]) -> None:
        """Write what the sweep is."""
        record = {
            "overrides": list(overrides),
            "command": sys.argv,
            "started": now(),
            "host": platform.node(),
            "git": git_state(),
            "versions": versions(),
            "code": fingerprint(PACKAGE),
        }
        partial = self.record_file.with_suffix(".json.partial")
        partial.write_text(json.dumps(redact(record), indent=2) + "\n")
        partial.replace(self.record_file)

    def refuse_changed_code(self) -> None:
        """Make sure that jobs yet to come are trained by the code that trained the others.

        Raises:
            InputError: files or packages differ from those that the sweep began with.
        """
        if changed := differences(self.read_record()["code"], fingerprint(PACKAGE)):
            names = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            raise InputError(
                f"resume={self.shown}: the code changed since ({names}), its results would not compare; "
                "start a new sweep, restore the code, or set hydra.sweeper.changed_code=true"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from running this sweep at the same time.

        Forked jobs share the lock: it is free when the last one of a killed sweep has ended.

        Raises:
            InputError: another process runs it.
        """
        with (self.path / ".lock").open("w") as file:
            deadline = time.monotonic() + LAST_BREATH_S
            while not _lock(file.fileno()):
                if time.monotonic() > deadline:
                    raise InputError(f"{self.shown}: this sweep is running already; end that process first")
                time.sleep(0.1)
            yield


def create(wanted: str, conf: Path, overrides: Sequence[str]) -> SweepFolder:
    """Make a new sweep's folder, with a copy of the configuration files.

    Args:
        wanted: its path; -2, -3, … is appended if it is taken.
        conf: folder of the configuration.
        overrides: of the command line.

    Raises:
        InputError: the folder cannot be made.
    """
    for file in sorted(conf.rglob("*.y*ml")):
        _refuse_secrets(file, conf)
    named = any(text.startswith("hydra.sweep.dir=") for text in overrides)
    folder = SweepFolder(claim(wanted, "hydra.sweep.dir" if named else "paths.outputs"))
    shutil.copytree(conf, folder.conf, ignore=_all_but_yaml)
    folder.start_record(overrides)
    return folder


def _refuse_secrets(file: Path, conf: Path) -> None:
    """A sweep copies its configuration files."""
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        found = ENTRY.match(line)
        if found and holds_secret(found[1], line.partition(":")[2].partition(" #")[0].strip(" '\"")):
            raise InputError(
                f"{file.relative_to(conf)}: {found[1]} is secret, and a sweep copies its configuration "
                f"files; write {found[1]}: ${{oc.env:NAME}} there"
            )


def find_sweep(path: str | Path) -> SweepFolder | None:
    """The sweep that a folder is, or None."""
    folder = SweepFolder(path)
    return folder if folder.record_file.exists() else None


def _lock(descriptor: int) -> bool:
    """Lock an open file, for this process and all that are forked from it, unless others hold it."""
    import fcntl  # Windows has none, and needs it for sweeps alone

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _all_but_yaml(directory: str, names: list[str]) -> list[str]:
    return [
        name for name in names if not name.endswith((".yaml", ".yml")) and not Path(directory, name).is_dir()
    ]
