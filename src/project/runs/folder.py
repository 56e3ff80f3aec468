"""A run's folder: its name, status and configuration. Needs no torch."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from project import slurm_job
from project.errors import InputError
from project.runs import checkpoint_files

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "omegaconf", "tensorboard")


class RunFolder:
    """What stands where in a run folder.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.status_file = self.path / "status.json"
        self.config_file = self.path / "config.yaml"
        self.composed_file = self.path / ".hydra" / "config.yaml"
        self.hydra_file = self.path / ".hydra" / "hydra.yaml"
        self.checkpoints = self.path / "checkpoints"

    @property
    def shown(self) -> str:
        """Path as a user would type it: relative to the working directory where it lies below that."""
        here = Path.cwd()
        return str(self.path.relative_to(here) if self.path.is_relative_to(here) else self.path)

    @property
    def last_checkpoint(self) -> Path:
        """The state from which the run goes on, if it is whole."""
        return self.checkpoints / checkpoint_files.LAST

    def newest_checkpoint(self) -> checkpoint_files.Found:
        """Find the newest checkpoint that is whole."""
        return checkpoint_files.newest(self.checkpoints)

    def read_status(self) -> dict[str, Any]:
        """Return the status, empty if there is none yet or if the file is damaged."""
        try:
            return json.loads(self.status_file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def write_status(self, **changes: Any) -> None:
        """Change keys of the status file; readers see the old one or the new one, never a part."""
        status = self.read_status() | changes
        partial = self.status_file.with_suffix(".json.partial")
        partial.write_text(json.dumps(status, indent=2) + "\n")
        partial.replace(self.status_file)

    @contextmanager
    def removed_if_never_trained(self, *, job: bool = False) -> Iterator[None]:
        """Leave no folder behind if an error comes before there is anything to keep.

        Args:
            job: the run belongs to a sweep, which keeps its log.
        """
        try:
            yield
        except BaseException:
            kept = [self.checkpoints, *self.path.glob("metrics.csv")]
            if not job and not any(path.exists() for path in kept):
                shutil.rmtree(self.path, ignore_errors=True)
            raise

    @contextmanager
    def recording(self, **facts: Any) -> Iterator[dict[str, Any]]:
        """Keep the status file while a run goes on: `running`, then `done`, `failed` or `interrupted`.

        Yields:
            A dict whose entries are added to the status when the run has ended well.
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
            slurm_job=slurm_job.job_id(),
            versions=versions(),
            git=git_state(),
            **facts,
        )
        result: dict[str, Any] = {}

        def end(state: str, **more: Any) -> None:
            self.write_status(
                state=state, finished=now(), duration_s=round(time.monotonic() - began, 2), **result, **more
            )

        try:
            yield result
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
            end(
                "interrupted" if interrupted else "failed",
                error=describe(error),
            )
            self._tell_how_to_go_on(interrupted=interrupted)
            raise
        end(result.pop("state", "done"))

    def end_unfinished(self, error: str, *, interrupted: bool) -> None:
        """Say in the status how a run ended, if the process that keeps it could not: it was killed.

        Args:
            error: what happened.
            interrupted: it was told to stop.
        """
        status, state = self.read_status(), "interrupted" if interrupted else "failed"
        if status and not (interrupted and status.get("state") == state):
            self.write_status(state=state, error=error, finished=now())
            self._tell_how_to_go_on(interrupted=interrupted)

    def _tell_how_to_go_on(self, *, interrupted: bool) -> None:
        if interrupted and self.newest_checkpoint().path:
            print(f"interrupted; go on with resume={self.shown}", file=sys.stderr)


def describe(error: BaseException) -> str:
    """An error as the status has it."""
    return f"{type(error).__name__}: {error}".strip(": ")


def claim(wanted: str | Path) -> Path:
    """Make a new folder of this name, with -2, -3, … behind it where other runs were first.

    Creating a folder either succeeds or fails as a whole, on network file systems too: two runs that start
    in the same instant get two folders.

    Raises:
        InputError: the folder cannot be made.
    """
    wanted = Path(wanted)
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            path = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
    except OSError as error:
        raise InputError(
            f"paths.outputs: cannot make the run folder {wanted} ({error.strerror}); set paths.outputs to a "
            "folder that you may write to"
        ) from error
    raise AssertionError("unreachable")


def find_run(wanted: str, outputs: str | Path) -> RunFolder:
    """Find a run folder by its path, or the latest below `outputs` as `last`.

    Raises:
        InputError: there is none.
    """
    if wanted == "last":
        runs = [RunFolder(file.parent) for file in Path(outputs).glob("**/status.json")]
        if not runs:
            raise InputError(f"resume=last: no run folder below paths.outputs={outputs}")
        return max(runs, key=lambda run: run.read_status().get("started", ""))
    run = RunFolder(wanted)
    if not run.composed_file.exists():
        raise InputError(f"resume={wanted}: no run folder ({run.composed_file} is missing)")
    return run


def run_of_checkpoint(checkpoint: str | Path) -> RunFolder | None:
    """The run folder in whose `checkpoints` a file lies, or None."""
    run = RunFolder(Path(checkpoint).absolute().parent.parent)
    return run if run.composed_file.exists() else None


@cache  # the jobs of a sweep inherit it
def versions() -> Mapping[str, str]:
    """Of Python and of what decides a run's result."""
    from importlib.metadata import version  # takes longer than all else here

    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


@cache
def git_state() -> Mapping[str, Any] | None:
    """Commit of the code and whether it was changed since, or None outside a repository."""
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(Path(__file__).parent), *command],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(changes)}


def now() -> str:
    """The time as records have it: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
