"""A sweep's folder: its record, the configuration files as they were, and a run folder for each job."""

import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from project.errors import InputError
from project.runs.folders import create_folder, folder_lock
from project.runs.provenance import changed_names, fingerprint, git_state, now, versions
from project.runs.run_folder import RunFolder
from project.runs.sweep_jobs import Job, Ledger
from project.runtime import yaml_files
from project.runtime.atomic_files import replace_text
from project.runtime.secrets import find_secrets, redact

PACKAGE = Path(__file__).resolve().parent.parent
ENTRY = re.compile(r"""^\s*(?:- )?['"]?([\w.+-]+)['"]?:[ \t]+([^\s#].*)""", re.MULTILINE)
"""Line with a key and a value, in files that are not valid YAML."""
LOCK_TIMEOUT_S = 10.0
"""Time that the processes of a killed sweep may need to end [s]."""


class SweepFolder:
    """Paths and files of a sweep's folder."""

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
        return RunFolder(self.path / name)

    def read_record(self) -> dict[str, Any]:
        """Return the command line, the start and the state of the code.

        Raises:
            InputError: the file is damaged.
        """
        try:
            return json.loads(self.record_file.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise InputError(f"resume={self.shown}: {self.record_file} is damaged ({error})") from error

    def read_jobs(self) -> dict[str, Job]:
        """Return the jobs by the name of their folders; none where the record is damaged."""
        try:
            return {job.name: job for job in self.ledger.read().values()}
        except (OSError, ValueError, TypeError):  # the runs' folders hold the same
            return {}

    def write_record(self, overrides: Sequence[str], config_name: str) -> None:
        record = {
            "overrides": list(overrides),
            "config_name": config_name,
            "command": sys.argv,
            "started": now(),
            "host": platform.node(),
            "git": git_state(),
            "versions": versions(),
            "code": fingerprint(PACKAGE),
        }
        replace_text(self.record_file, json.dumps(redact(record), indent=2) + "\n")

    def refuse_changed_code(self) -> None:
        """Refuse to resume with other code than the sweep began with.

        Raises:
            InputError: source files or packages changed.
        """
        if changed := changed_names(self.read_record()["code"], fingerprint(PACKAGE)):
            names = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            raise InputError(
                f"resume={self.shown}: the code changed since ({names}), its results would not compare; "
                "start a new sweep, restore the code, or set hydra.sweeper.changed_code=true"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from running this sweep at the same time.

        Forked jobs share the lock, so it is free once the last process of a killed sweep has ended.

        Raises:
            InputError: another process runs the sweep.
        """
        busy = f"{self.shown}: this sweep is running already; end that process first"
        with folder_lock(self.path, busy, LOCK_TIMEOUT_S):
            yield


def find_sweep(path: str | Path) -> SweepFolder | None:
    """Return the sweep in a folder, None if it holds none."""
    folder = SweepFolder(path)
    return folder if folder.record_file.exists() else None


def create(
    wanted: str, sources: Sequence[Path], overrides: Sequence[str], config_name: str = "train"
) -> SweepFolder:
    """Make a new sweep's folder, with a copy of all configuration files.

    Args:
        wanted: path of the folder; -2, -3, … is appended if it exists.
        sources: folders of configuration files; a file hides those of the same name in later folders.
        overrides: of the command line.
        config_name: of the primary configuration.

    Raises:
        InputError: the folder cannot be made, or a file of the configuration holds a secret.
    """
    files = {file.relative_to(top): (file, top) for top in reversed(sources) for file in _config_files(top)}
    for path, (file, top) in list(files.items()):
        if (key := _find_secret(file)) is None:
            continue
        if top == sources[0] or file.resolve() in yaml_files.loaded_files.values():
            raise InputError(
                f"{path}: {key} is secret, and a sweep copies its configuration files; write {key}: "
                "${oc.env:NAME} there"
            )
        print(f"warning: {path}: {key} is secret; the sweep's configuration lacks this file", file=sys.stderr)
        del files[path]
    is_named = any(text.startswith("hydra.sweep.dir=") for text in overrides)
    folder = SweepFolder(create_folder(wanted, "hydra.sweep.dir" if is_named else "paths.outputs"))
    for path, (file, _) in files.items():
        copy = folder.conf / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        yaml_files.original_files[copy.resolve()] = file
    folder.write_record(overrides, config_name)
    return folder


def _config_files(top: Path) -> Iterator[Path]:
    """Yield the YAML files below a folder that Hydra could read, but hidden ones and those of runs."""
    parents: dict[str, tuple[str, ...]] = {}  # real paths of each folder's parents
    for place, folders, names in os.walk(top, followlinks=True):
        above, real = parents.get(os.path.dirname(place), ()), os.path.realpath(place)
        if real in above or {"status.json", "sweep.json"} & set(names):  # links may lead in a circle
            folders.clear()
            continue
        parents[place] = (*above, real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in (Path(place, name) for name in sorted(names) if name.endswith((".yaml", ".yml"))):
            if file.is_file() and file.stat().st_size <= yaml_files.MAX_BYTES:
                yield file


def _find_secret(file: Path) -> str | None:
    """Return the first key of a file with a secret, which a copy would spread."""
    try:
        plain = yaml_files.read_yaml(file)
    except InputError:
        plain = [{key: value} for key, value in ENTRY.findall(yaml_files.read_text(file, errors="replace"))]
    return next((key for key, _ in find_secrets(plain)), None)
