"""Sweep folder: the record of the sweep, copies of its configuration files, and a run folder per job."""

import errno
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from project.errors import InputError
from project.runs.folders import create_folder, folder_lock
from project.runs.provenance import changed_names, fingerprint, git_state, hashes_below, now, versions
from project.runs.run_folder import RunFolder
from project.runs.sweep_jobs import Job, Ledger
from project.runtime import yaml_files
from project.runtime.atomic_files import reason_of, replace_text
from project.runtime.secrets import find_secrets, redact

PACKAGE = Path(__file__).resolve().parent.parent
ENTRY = re.compile(r"""^\s*(?:- )?['"]?([\w.+-]+)['"]?:[ \t]+([^\s#].*)""", re.MULTILINE)
"""Line with a key and a value, in a file that is not valid YAML."""
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
"""System errors of writes to a read-only folder."""
LOCK_TIMEOUT_S = 10.0
"""Time to wait for the processes of a killed sweep to end [s]."""


class SweepFolder:
    """Files of a sweep folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.record_file = self.path / "sweep.json"
        self.conf = self.path / "conf"
        self.log_file = self.path / "sweep.log"
        self.ledger = Ledger(self.path / "jobs.jsonl")

    @property
    def shown(self) -> str:
        """Path as the user types it."""
        return RunFolder(self.path).shown

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.path / name)

    def read_record(self) -> dict[str, Any]:
        """Read the record: command line, start time and state of the code.

        Raises:
            InputError: the file is damaged.
        """
        try:
            return json.loads(self.record_file.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise InputError(
                f"resume={self.shown}: {self.record_file} is damaged ({error}); restore the file, or start a "
                "new sweep"
            ) from error

    def read_command(self) -> list[str]:
        """Return the words of the command that started the sweep; none if the record is damaged."""
        try:
            return list(map(str, self.read_record()["command"]))
        except (InputError, KeyError, TypeError):
            return []

    def read_jobs(self) -> dict[str, Job]:
        """Return the jobs by the names of their folders; empty if the ledger is damaged."""
        try:
            return {job.name: job for job in self.ledger.read().values()}
        except (OSError, ValueError, TypeError):  # the run folders contain the same facts
            return {}

    def unrecorded_jobs(self) -> list[str]:
        """Return the names of the job folders whose jobs are not in the ledger.

        Raises:
            InputError: the ledger is damaged.
        """
        recorded = {job.name for job in self.ledger.read().values()}
        files = self.path.glob("[0-9]*/status.json")
        return sorted(name for file in files if (name := file.parent.name) not in recorded)

    @contextmanager
    def explain_unwritable(self) -> Iterator[None]:
        """Replace errors about missing permission to write to a resumed sweep.

        Raises:
            InputError: a file or the folder is read-only.
        """
        try:
            yield
        except OSError as error:
            file = Path(os.fsdecode(error.filename or ""))
            if error.errno not in READ_ONLY or not file.absolute().is_relative_to(self.path.absolute()):
                raise
            raise InputError(
                f"resume={self.shown}: {file if file.exists() else file.parent} cannot be written "
                f"({reason_of(error)}); make the folder writable, or resume a copy of it"
            ) from error

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

    def record_extension(self, given: Sequence[str], kept: Sequence[str]) -> None:
        """Record the overrides of an extension.

        Args:
            given: overrides that added jobs.
            kept: settings of the sweep that replace earlier ones.
        """
        record = self.read_record()
        replaced = {text.partition("=")[0] for text in kept}
        earlier = [text for text in record["overrides"] if text.partition("=")[0] not in replaced]
        record["overrides"] = [*earlier, *kept]
        record.setdefault("extensions", []).append({"overrides": list(given), "started": now()})
        replace_text(self.record_file, json.dumps(redact(record), indent=2) + "\n")

    def refuse_changed_code(self) -> None:
        """Refuse to resume a sweep after changes to the code.

        Raises:
            InputError: source files or packages changed.
        """
        self._refuse_changed(self.read_record()["code"], fingerprint(PACKAGE))

    def record_own_code(
        self, sources: Mapping[str, tuple[Path, Sequence[Path]]], *, is_checked: bool
    ) -> None:
        """Record the source files of the user's packages, unless they are on record already.

        Args:
            sources: for each package, the folder that contains it, and its files.
            is_checked: compare them with those on record.

        Raises:
            InputError: they changed.
        """
        record = self.read_record()
        known: dict[str, dict[str, str]] = record.setdefault("own_code", {})
        now = {name: hashes_below(folder, files) for name, (folder, files) in sources.items()}
        for name in known.keys() & now if is_checked else ():
            self._refuse_changed(known[name], now[name])
        if now.keys() - known:
            record["own_code"] = now | known
            replace_text(self.record_file, json.dumps(record, indent=2) + "\n")

    def _refuse_changed(self, earlier: Mapping[str, str], now: Mapping[str, str]) -> None:
        if changed := changed_names(earlier, now):
            names = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            raise InputError(
                f"resume={self.shown}: the code has changed ({names}), so results would not be comparable; "
                "start a new sweep, restore the code, or set hydra.sweeper.changed_code=true"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the sweep against other processes.

        Forked jobs share the lock, which is released when the last process of a killed sweep has ended.

        Raises:
            InputError: another process runs the sweep.
        """
        busy = (
            f"{self.shown}: this sweep is running already; end its process first, or add join=true to run "
            "some of its jobs here"
        )
        with folder_lock(self.path, busy, LOCK_TIMEOUT_S):
            yield


def find_sweep(path: str | Path) -> SweepFolder | None:
    """Return the sweep in a folder; None if there is none."""
    folder = SweepFolder(path)
    return folder if folder.record_file.exists() else None


def create(
    wanted: str, sources: Sequence[Path], overrides: Sequence[str], config_name: str = "train"
) -> SweepFolder:
    """Make the folder of a new sweep, with copies of all configuration files.

    Args:
        wanted: path of the folder; -2, -3, … is appended if it exists.
        sources: folders of configuration files; a file hides those of the same name in later folders.
        overrides: overrides of the command line.
        config_name: name of the primary configuration.

    Raises:
        InputError: the folder cannot be made, or a configuration file contains a secret.
    """
    files = {file.relative_to(top): (file, top) for top in reversed(sources) for file in _config_files(top)}
    for path, (file, top) in list(files.items()):
        if (key := _find_secret(file)) is None:
            continue
        if top == sources[0] or file.resolve() in yaml_files.loaded_files.values():
            raise InputError(
                f"{path}: {key} is secret, but a sweep copies its configuration files; write {key}: "
                "${oc.env:NAME} there"
            )
        print(
            f"warning: {path}: {key} is secret; the file is not copied to the sweep folder", file=sys.stderr
        )
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
    """Yield the YAML files below a folder, except for hidden ones and those of runs and sweeps."""
    parents: dict[str, tuple[str, ...]] = {}  # resolved parents of each folder
    for place, folders, names in os.walk(top, followlinks=True):
        above, real = parents.get(os.path.dirname(place), ()), os.path.realpath(place)
        if real in above or {"status.json", "sweep.json"} & set(names):  # links may form a cycle
            folders.clear()
            continue
        parents[place] = (*above, real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in (Path(place, name) for name in sorted(names) if name.endswith((".yaml", ".yml"))):
            if file.is_file() and file.stat().st_size <= yaml_files.MAX_BYTES:
                yield file


def _find_secret(file: Path) -> str | None:
    """Return the first key in a file that has a secret value; None without one."""
    try:
        plain = yaml_files.read_yaml(file)
    except InputError:
        plain = [{key: value} for key, value in ENTRY.findall(yaml_files.read_text(file, errors="replace"))]
    return next((key for key, _ in find_secrets(plain)), None)
