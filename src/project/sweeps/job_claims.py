"""Claims of a running sweep's jobs by several processes, also on machines that share a file system.

A claim is a symbolic link from a job's number to the folder of a worker, in which the worker touches a file
as a heartbeat. Making a link is atomic, also on network file systems. The sweep's own process holds the lock
of the sweep, and only it writes the ledger and takes back the claims of dead workers.
"""

import json
import os
import platform
import secrets
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from project.errors import InputError
from project.runs.folders import folder_lock
from project.runs.run_folder import RunFolder
from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import FINISHED, SUCCEEDED, Job, Ledger
from project.runtime.atomic_files import replace_text
from project.sweeps.engine import Engine, EngineClosedError, JobExit
from project.sweeps.job_order import AS_WRITTEN, JobOrder, JobQueue
from project.sweeps.job_process import JobSpec
from project.sweeps.job_scheduler import prepare_job_folder

FOLDER = ".claims"
OWNER = "owner"
"""Worker name of the sweep's own process."""
HEARTBEAT = "heartbeat"
HEARTBEAT_S = 10.0
"""Interval between heartbeats [s]."""
LEASE_S = 300.0
"""Age of the heartbeat of a dead worker [s]; NFS clients may cache a file's time for 60 s."""
LOCAL_LEASE_S = 30.0
"""The same for a worker of this machine whose lock is free [s]."""
POLL_S = 1.0
"""Interval between looks at the jobs of other workers [s]."""


class LostClaimError(RuntimeError):
    """The sweep has given a job of this process to another one."""

    exit_code = 1


class JobClaims:
    """Claims of one worker.

    Args:
        sweep: folder of the sweep.
        worker: name of the worker [a new one for this process].
    """

    def __init__(self, sweep: Path, worker: str = "") -> None:
        self.folder = sweep / FOLDER
        self.worker = worker or f"{platform.node()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._beat_s = -HEARTBEAT_S

    @property
    def is_owner(self) -> bool:
        """True in the sweep's own process."""
        return self.worker == OWNER

    @contextmanager
    def active(self) -> Iterator[None]:
        """Announce the worker within the block."""
        place = self.folder / self.worker
        with suppress(OSError):  # no process can join then
            place.mkdir(parents=True, exist_ok=True)
        with folder_lock(place):
            self.beat()
            try:
                yield
            finally:
                self._withdraw()

    def beat(self) -> bool:
        """Touch the heartbeat, unless that was done just now; return true if it was touched."""
        if time.monotonic() - self._beat_s < HEARTBEAT_S:
            return False
        self._beat_s = time.monotonic()
        with suppress(OSError):
            (self.folder / self.worker / HEARTBEAT).touch()
        return True

    def claim(self, number: int) -> bool:
        """Claim a job; return true if it now belongs to this worker."""
        try:
            (self.folder / str(number)).symlink_to(self.worker)
        except FileExistsError:
            return self.holder(number) == self.worker
        except OSError:  # a full disk, or a file system without links
            return self.is_owner
        return True

    def release(self, number: int) -> None:
        """Remove the claim of a job."""
        with suppress(OSError):
            (self.folder / str(number)).unlink()

    def holder(self, number: int) -> str:
        """Return the worker that has claimed a job, or an empty string."""
        try:
            return str((self.folder / str(number)).readlink())
        except OSError:
            return ""

    def is_alive(self, worker: str) -> bool:
        """Return True if a worker has touched its heartbeat lately, by the clock of the file system."""
        self._beat_s = -HEARTBEAT_S
        self.beat()
        try:
            now_s = (self.folder / self.worker / HEARTBEAT).stat().st_mtime
            age_s = now_s - (self.folder / worker / HEARTBEAT).stat().st_mtime
        except OSError:
            return False
        is_local = worker.startswith(f"{platform.node()}-")
        if age_s > LEASE_S or not is_local or age_s < LOCAL_LEASE_S:
            return age_s <= LEASE_S
        try:
            with folder_lock(self.folder / worker, timeout_s=0.0):
                return False
        except InputError:  # the worker holds its lock
            return True

    def write_outcome(self, job: Job) -> None:
        """Leave the result of a job to the sweep's own process."""
        facts = {"state": job.state, "error": job.error, "duration_s": job.duration_s}
        replace_text(self._outcome_file(job.number), json.dumps(facts))

    def take_outcome(self, number: int) -> dict[str, Any] | None:
        """Return and remove the result that another worker left, with its claim; None if there is none."""
        try:
            facts: dict[str, Any] = json.loads(self._outcome_file(number).read_text())
        except (OSError, ValueError):
            return None
        self._outcome_file(number).unlink(missing_ok=True)
        self.release(number)
        return facts

    def _outcome_file(self, number: int) -> Path:
        return self.folder / f"{number}.json"

    def _withdraw(self) -> None:
        """Remove the worker; in the sweep's own process also its claims, or all if nobody else is left."""
        with suppress(OSError):
            if self.is_owner:
                others = [place.name for place in self.folder.iterdir() if (place / ".lock").exists()]
                others = [name for name in others if not name.isdecimal() and name != OWNER]
                if not any(map(self.is_alive, others)) and not list(self.folder.glob("*.json")):
                    shutil.rmtree(self.folder)
                    return
                for link in self.folder.iterdir():
                    if link.is_symlink() and str(link.readlink()) == OWNER:
                        link.unlink()
            shutil.rmtree(self.folder / self.worker)
            self.folder.rmdir()  # if it is empty


class SharedEngine(Engine):
    """Engine that runs the jobs which its worker can claim, and follows those of other workers.

    Args:
        engine: place where this worker's jobs run.
        claims: claims of this worker.
    """

    def __init__(self, engine: Engine, claims: JobClaims) -> None:
        self.engine = engine
        self.claims = claims
        self.handles_signals = engine.handles_signals
        self._own: set[int] = set()
        self._elsewhere: dict[int, JobSpec] = {}
        self._returned: deque[JobSpec] = deque()  # from dead workers
        self._poll_s = 0.0
        self._is_stopping = False

    def set_print(self, print_line: Callable[[str], None]) -> None:
        self.engine.set_print(print_line)

    def has_capacity(self) -> bool:
        return not self._returned and self.engine.has_capacity()

    def reattach(self, spec: JobSpec) -> bool:
        if self.claims.claim(spec.number):
            return self.engine.reattach(spec)
        self._elsewhere[spec.number] = spec
        return True

    def start(self, spec: JobSpec) -> bool:
        if spec.number in self._elsewhere:
            return True
        if not self.engine.start(spec):
            return False
        self._own.add(spec.number)
        return True

    def wait(self, timeout_s: float) -> list[JobExit]:
        ended = self.engine.wait(timeout_s)
        self._own -= {job.number for job in ended}
        if self.claims.beat():
            self._refuse_lost_claims()
        if time.monotonic() - self._poll_s > POLL_S or self._is_stopping:
            self._poll_s = time.monotonic()
            ended += [found for spec in list(self._elsewhere.values()) if (found := self._follow(spec))]
        if self._is_stopping:
            ended += [JobExit(spec.number, None) for spec in (*self._elsewhere.values(), *self._returned)]
            self._elsewhere.clear()
            self._returned.clear()
        return ended + self._start_returned()

    def interrupt(self) -> None:
        self._is_stopping = True
        self.engine.interrupt()

    def kill(self) -> None:
        self.engine.kill()

    def _refuse_lost_claims(self) -> None:
        if lost := [number for number in self._own if not self.claims.claim(number)]:
            raise LostClaimError(
                f"job {lost[0]}: given to another process, because this one did not run for a while"
            )

    def _start_returned(self) -> list[JobExit]:
        ended = []
        while self._returned and self.engine.has_capacity():
            try:
                if not self.start(self._returned[0]):
                    break
            except (InputError, EngineClosedError) as error:
                ended.append(JobExit(self._returned[0].number, 1, error=str(error)))
            self._returned.popleft()
        return ended

    def _follow(self, spec: JobSpec) -> JobExit | None:
        """Return the exit of a job of another worker; take the job back if the worker is dead."""
        number, run = spec.number, RunFolder(spec.folder)
        if (facts := self.claims.take_outcome(number)) is not None:
            del self._elsewhere[number]
            error = facts["error"] if facts["state"] == "failed" else None
            return JobExit(number, 1 if error else 0, facts["duration_s"], error or "")
        holder = self.claims.holder(number)
        if holder and holder != self.claims.worker:
            if self.claims.is_alive(holder):
                return None
            if self.claims.holder(number) == holder:
                self.claims.release(number)
        if not self.claims.claim(number):  # another worker was faster
            return None
        del self._elsewhere[number]
        self.engine.report(f"job {number}: its process {holder} has ended; the job is taken back")
        if run.read_status().get("state") in SUCCEEDED:
            return JobExit(number, 0)
        try:
            prepare_job_folder(run, spec.config)
        except OSError as error:
            return JobExit(number, 1, error=str(error))
        self._returned.append(spec)
        return None


class JoinedLedger(Ledger):
    """Ledger of a sweep that another process runs: results are left to that process."""

    def __init__(self, file: Path, claims: JobClaims) -> None:
        super().__init__(file)
        self.claims = claims

    def write(self, *jobs: Job) -> None:
        for job in jobs:
            if job.state in FINISHED:
                self.claims.write_outcome(job)


class JoinedJobs:
    """Source of the jobs of a running sweep that no other worker has claimed.

    Args:
        folder: folder of the sweep.
        claims: claims of this worker.
        jobs: jobs on record.
        order: order in which the jobs start.
    """

    is_checked = True

    def __init__(
        self, folder: SweepFolder, claims: JobClaims, jobs: Sequence[Job], order: JobOrder = AS_WRITTEN
    ) -> None:
        self.folder = folder
        self.claims = claims
        self.taken: list[Job] = []
        self._waiting = JobQueue(jobs, order)

    def next_job(self) -> Job | None:
        self._waiting.record(self.folder.ledger.read().values())
        while self.claims.is_alive(OWNER) and (job := self._waiting.pop()) is not None:
            if not self.claims.claim(job.number):
                continue
            state = self.folder.ledger.read()[job.number].state  # read after the claim: nobody changes it now
            if state == "waiting" and self.folder.run(job.name).read_status().get("state") not in SUCCEEDED:
                self.taken.append(job)
                return job
            self.claims.release(job.number)
        return None

    def complete_overrides(self, job: Job) -> list[str]:
        return job.overrides

    def finish(self, job: Job) -> None:
        pass
