"""A run's folder: its name, status and configuration. Needs no torch."""

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from project.errors import InputError, plain
from project.runs import checkpoint_files
from project.runs.create import discard
from project.runs.provenance import git_state, now, versions
from project.runtime import slurm as slurm_job
from project.runtime.files import Outage, reason_of, replace_text
from project.runtime.secrets import redact
from project.runtime.write_probe import probe

log = logging.getLogger(__name__)

KINDS = {"pid": int, "host": str, "started": str, "state": str}
"""What these keys of a status hold; anything else there counts as nothing."""


class UnrecordedError(RuntimeError):
    """A run's result could not be written. The message names the file and the reason."""

    exit_code = 1


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
        self._outage = Outage(self.status_file, "what becomes of the run is kept until that works")
        self._unwritten: dict[str, Any] = {}
        self._recorded: dict[str, Any] = {}  # the status that was written last
        self._held: dict[Path, str] = {}
        self._told_removed = False

    @property
    def shown(self) -> str:
        """Path as a user would type it: relative to the working directory where it lies below that."""
        changed = HydraConfig.initialized() and HydraConfig.get().job.chdir
        here = Path(HydraConfig.get().runtime.cwd) if changed else Path.cwd()
        return str(self.path.relative_to(here) if self.path.is_relative_to(here) else self.path)

    @property
    def last_checkpoint(self) -> Path:
        """The state from which the run goes on, if it is whole."""
        return self.checkpoints / checkpoint_files.LAST

    def newest_checkpoint(self) -> checkpoint_files.Found:
        """Find the newest checkpoint that is whole."""
        return checkpoint_files.newest(self.checkpoints)

    def read_status(self) -> dict[str, Any]:
        """Return the status with what could not be written yet, empty if there is none or it is damaged."""
        try:
            found = json.loads(self.status_file.read_bytes())
        except (OSError, ValueError, RecursionError):
            found = {}
        if not isinstance(found, dict):
            found = {}
        whole = {key: value for key, value in found.items() if isinstance(value, KINDS.get(key, object))}
        return whole | self._unwritten

    def write_status(self, **changes: Any) -> bool:
        """Change keys of the status file; readers see the old one or the new one, never a part.

        What cannot be written is told once, and written with what is changed next.

        Returns:
            Whether it was written.
        """
        self._unwritten |= changes
        try:
            self._make_whole()
            status = {**({} if self.status_file.exists() else self._recorded), **self.read_status()}
            text = json.dumps(redact(status), indent=2) + "\n"
            replace_text(self.status_file, text, durable="state" in changes)
        except OSError as error:
            self._outage.begin(error)
            return False
        self._recorded = status
        self._unwritten.clear()
        self._outage.end()
        return True

    def hold_configuration(self) -> None:
        """Keep in memory what a resume and an evaluation read: somebody may remove the folder meanwhile."""
        files = [self.config_file, *self.composed_file.parent.glob("*.yaml")]
        self._held = {file: file.read_text() for file in files if file.is_file()}

    def _make_whole(self) -> None:
        """Write again what was held, if it is gone, which is told once.

        Raises:
            OSError: it cannot be written.
        """
        for file, content in self._held.items():
            if file.exists():
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_text(file, content)
            if not self._told_removed:
                self._told_removed = True
                log.warning(
                    "warning: %s was removed while its run goes on; its configuration, status and next "
                    "checkpoint are written again, earlier rows and checkpoints are lost",
                    self.shown,
                )

    def refuse_unrecorded(self) -> None:
        """Make sure that the run's end is on record: a sweep, or whoever looks later, knows no other.

        Raises:
            UnrecordedError: it is not, and cannot be written now either.
        """
        if self._unwritten and not self.write_status():
            raise UnrecordedError(
                f"{self.status_file}: the result could not be recorded ({self._outage.reason}); it stands "
                "above, while the file says what the run was before"
            )

    @contextmanager
    def removed_if_never_trained(self, *, job: bool = False) -> Iterator[None]:
        """Leave no folder behind if an error comes before there is anything to keep: only one that this
        process has made; a run that goes on keeps its own.

        Args:
            job: the run belongs to a sweep, which keeps its log.
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
        """Say in the status how a run ended, if the process that keeps it could not: it was killed. One that
        had its result stays done.

        Args:
            error: what happened.
            interrupted: it was told to stop.
        """
        state = "interrupted" if interrupted else "failed"
        before = self.read_status().get("state", "done")
        if before not in ("done", "pruned") and not (interrupted and before == state):
            self.write_status(state=state, error=error, finished=now())
            self._tell_how_to_go_on(interrupted=interrupted)

    def _tell_how_to_go_on(self, *, interrupted: bool) -> None:
        if interrupted and self.newest_checkpoint().path:
            print(f"interrupted; go on with resume={self.shown}", file=sys.stderr)


def describe(error: BaseException) -> str:
    """An error as the status has it."""
    return f"{type(error).__name__}: {plain(str(error))}".strip(": ")


def refuse_unwritable(run: RunFolder) -> None:
    """Make sure that a run can go on in its folder.

    Raises:
        InputError: it cannot be written to.
    """
    for folder in (run.path, run.checkpoints):
        try:
            if folder.exists():
                probe(folder)
        except OSError as error:
            raise InputError(
                f"resume={run.shown}: cannot write to {folder} ({reason_of(error)}); make room, or make it "
                "writable"
            ) from error


def latest_run(outputs: str | Path) -> RunFolder | None:
    """The run below a folder that was started last, None if there is none. One that was a trial (`debug=…`,
    `tune=…`) counts only where there is nothing else.
    """
    runs = [RunFolder(file.parent) for file in Path(outputs).glob("**/status.json")]
    found = [(run.read_status(), run) for run in runs]
    found = [(status, run) for status, run in found if not status.get("trial")] or found
    return max(found, key=lambda one: one[0].get("started", ""), default=({}, None))[1]


def find_run(wanted: str, outputs: str | Path) -> RunFolder:
    """Find a run folder by its path, or the latest below `outputs` as `last`.

    Raises:
        InputError: there is none.
    """
    if wanted == "last":
        if (last := latest_run(outputs)) is None:
            raise InputError(f"resume=last: no run folder below paths.outputs={outputs}")
        return last
    run = RunFolder(wanted)
    if not run.composed_file.exists():
        raise InputError(f"resume={wanted}: no run folder ({run.composed_file} is missing)")
    return run


def run_of_checkpoint(checkpoint: str | Path) -> RunFolder | None:
    """The run folder in whose `checkpoints` a file lies, or None."""
    run = RunFolder(Path(checkpoint).absolute().parent.parent)
    return run if run.composed_file.exists() else None
