"""Run folder (files, status, configuration), and `RunContext`, the facts that all parts of a run share."""

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from project.errors import InputError, strip_library_text
from project.runs import checkpoint_files
from project.runs.folders import discard
from project.runs.provenance import git_state, now, versions
from project.runs.sweep_jobs import SUCCEEDED
from project.runtime import slurm, torchrun
from project.runtime.atomic_files import Outage, reason_of, replace_text
from project.runtime.output_files import probe
from project.runtime.process import command_state
from project.runtime.secrets import redact

log = logging.getLogger(__name__)

STATUS_TYPES = {"pid": int, "host": str, "started": str, "state": str}
"""Types of values in a status; values of other types are ignored."""


class UnrecordedError(RuntimeError):
    """Unwritten result of a run. The message names the file and the reason."""

    exit_code = 1


class RunFolder:
    """Files of a run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.status_file = self.path / "status.json"
        self.config_file = self.path / "config.yaml"
        self.composed_file = self.path / ".hydra" / "config.yaml"
        self.hydra_file = self.path / ".hydra" / "hydra.yaml"
        self.checkpoints = self.path / "checkpoints"
        self._outage = Outage(self.status_file, "the status is kept in memory until it can be written")
        self._unwritten: dict[str, Any] = {}
        self._written: dict[str, Any] = {}
        self._config_texts: dict[Path, str] = {}
        self._reported_removal = False

    @property
    def shown(self) -> str:
        """Path as the user types it: relative if below the folder of the command."""
        here = command_state.folder or Path.cwd()
        return str(self.path.relative_to(here) if self.path.is_relative_to(here) else self.path)

    @property
    def last_checkpoint(self) -> Path:
        """Path of the checkpoint from which the run is resumed, unless it is damaged."""
        return self.checkpoints / checkpoint_files.LAST

    def newest_checkpoint(self) -> checkpoint_files.NewestCheckpoint:
        """Return the newest undamaged checkpoint, and the damage of newer ones."""
        return checkpoint_files.newest(self.checkpoints)

    def read_status(self) -> dict[str, Any]:
        """Return the status, including unwritten changes; empty if missing or damaged."""
        try:
            found = json.loads(self.status_file.read_bytes())
        except (OSError, ValueError, RecursionError):
            found = {}
        items = found.items() if isinstance(found, dict) else ()
        return {
            key: value for key, value in items if isinstance(value, STATUS_TYPES.get(key, object))
        } | self._unwritten

    def write_status(self, **changes: Any) -> bool:
        """Update the status file atomically; return true on success.

        A failure is reported once, and the changes are written with the next ones.
        """
        self._unwritten |= changes
        try:
            self._restore_config()
            status = {**({} if self.status_file.exists() else self._written), **self.read_status()}
            text = json.dumps(redact(status), indent=2) + "\n"
            replace_text(self.status_file, text, durable="state" in changes)
        except OSError as error:
            self._outage.begin(error)
            return False
        self._written = status
        self._unwritten.clear()
        self._outage.end()
        return True

    def keep_config(self) -> None:
        """Keep the configuration in memory, to write it again if the folder is removed during the run."""
        files = [self.config_file, *self.composed_file.parent.glob("*.yaml")]
        self._config_texts = {file: file.read_text() for file in files if file.is_file()}

    def _restore_config(self) -> None:
        for file, content in self._config_texts.items():
            if file.exists():
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_text(file, content)
            if not self._reported_removal:
                self._reported_removal = True
                log.warning(
                    "warning: %s was removed during the run; its configuration, status and next checkpoint "
                    "are written again, earlier rows and checkpoints are lost",
                    self.shown,
                )

    def require_recorded(self) -> None:
        """Write unwritten changes of the status, which holds the result.

        Raises:
            UnrecordedError: the status cannot be written.
        """
        if self._unwritten and not self.write_status():
            raise UnrecordedError(
                f"{self.status_file}: the result could not be recorded ({self._outage.reason}); it is "
                "printed above, and the file has the previous status"
            )

    def require_writable(self) -> None:
        """Refuse to resume the run in a read-only folder.

        Raises:
            InputError: a folder cannot be written to.
        """
        for folder in (self.path, self.checkpoints):
            try:
                if folder.exists():
                    probe(folder)
            except OSError as error:
                raise InputError(
                    f"resume={self.shown}: cannot write to {folder} ({reason_of(error)}); make room, or make "
                    "it writable"
                ) from error

    @contextmanager
    def removed_if_untrained(self, *, job: bool = False) -> Iterator[None]:
        """Remove a folder made by this process if an error occurs before a checkpoint or metric.

        Args:
            job: keep the folder, as the log of a sweep's job is in it.
        """
        try:
            yield
        except BaseException:
            kept = [self.checkpoints, *self.path.glob("metrics.csv")]
            if not job and not any(path.exists() for path in kept):
                discard(self.path)
            raise

    @contextmanager
    def recording(self, **facts: Any) -> Iterator[dict[str, Any]]:
        """Record the state of a run: `running`, then `done`, `failed` or `interrupted`.

        `facts` are added to the status at the start, the entries of the yielded dict at the end.
        """
        began = time.monotonic()
        self.write_status(
            state="running",
            started=now(),
            finished=None,
            error=None,
            host=platform.node(),
            pid=os.getpid(),
            command=sys.argv,
            slurm_job=slurm.job_id(),
            versions=versions(),
            git=git_state(),
            **facts,
        )
        result: dict[str, Any] = {}

        def end(state: str, **more: Any) -> None:
            duration_s = round(time.monotonic() - began, 2)
            self.write_status(state=state, finished=now(), duration_s=duration_s, **result, **more)

        try:
            yield result
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt | SystemExit) and not is_plain_exit(error)
            end("interrupted" if interrupted else "failed", error=describe(error))
            self._print_resume_hint(interrupted)
            raise
        end(result.pop("state", "done"))

    def record_end(self, error: str, *, interrupted: bool) -> None:
        """Record the end of a run whose process was killed; a run with a result stays done."""
        state = "interrupted" if interrupted else "failed"
        before = self.read_status().get("state", "done")
        if before not in SUCCEEDED and not (interrupted and before == state):
            self.write_status(state=state, error=error, finished=now())
            self._print_resume_hint(interrupted)

    def _print_resume_hint(self, interrupted: bool) -> None:
        if interrupted and self.newest_checkpoint().path:
            print(f"interrupted; continue with resume={self.shown}", file=sys.stderr)


@dataclass(frozen=True)
class RunContext:
    """Facts about a run, made once from its composed configuration and passed down.

    Args:
        folder: run folder.
        in_sweep: the run is a job of a sweep.
        is_debugging: the run is a trial of a `debug=…` preset.
        ckpt_path: checkpoint to continue from [None].
        resume_force: accept changes that make the results wrong.
    """

    folder: RunFolder
    in_sweep: bool = False
    is_debugging: bool = False
    ckpt_path: str | None = None
    resume_force: bool = False

    @classmethod
    def from_config(cls, config: DictConfig, hydra: DictConfig | None = None) -> "RunContext":
        """Make the context of a run from its composed configuration and the `hydra` node, if any."""
        return cls(
            folder=RunFolder(config.paths.run),
            in_sweep=hydra is not None and hydra.mode is not None and hydra.mode.name == "MULTIRUN",
            is_debugging=hydra is not None and bool(hydra.runtime.choices.get("debug")),
            ckpt_path=config.get("ckpt_path"),
            resume_force=config.get("resume_force", False),
        )

    @property
    def is_first(self) -> bool:
        """True in the process that writes the run folder and prints."""
        return torchrun.is_rank_zero()


def is_plain_exit(error: BaseException) -> bool:
    """Return true for `sys.exit()` in the code of a run; signals end a run with another exit code."""
    return isinstance(error, SystemExit) and not error.code


def describe(error: BaseException) -> str:
    """Return an error in the form of the status."""
    if is_plain_exit(error):
        return "SystemExit: the code called sys.exit() before the run was complete"
    return f"{type(error).__name__}: {strip_library_text(str(error))}".strip(": ")


def latest_run(outputs: str | Path) -> RunFolder | None:
    """Return the run below a folder that was started last; None without one.

    Trials (`debug=…`, `tune=…`) count only if there are no other runs.
    """
    runs = [RunFolder(file.parent) for file in Path(outputs).glob("**/status.json")]
    found = [(run.read_status(), run) for run in runs]
    found = [(status, run) for status, run in found if not status.get("trial")] or found
    return max(found, key=lambda one: one[0].get("started", ""), default=({}, None))[1]


def find_run(wanted: str, outputs: str | Path) -> RunFolder:
    """Return the run folder at a path, or for `last` the latest one below `outputs`.

    Raises:
        InputError: there is no run folder.
    """
    if wanted == "last":
        if (last := latest_run(outputs)) is None:
            raise InputError(
                f"resume=last: no run folder below paths.outputs={outputs}; name the folder of a run or sweep"
            )
        return last
    run = RunFolder(wanted)
    if not run.composed_file.exists():
        raise InputError(
            f"resume={wanted}: no run folder ({run.composed_file} is missing); name the folder of a run or "
            "sweep, or last"
        )
    return run


def run_of_checkpoint(checkpoint: str | Path) -> RunFolder | None:
    """Return the run folder of a checkpoint; None for files outside run folders."""
    run = RunFolder(Path(checkpoint).absolute().parent.parent)
    return run if run.composed_file.exists() else None
