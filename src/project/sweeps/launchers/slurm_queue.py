"""SLURM's own commands: states of jobs, cancellation, and the refusals of `sbatch`."""

import math
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from project.errors import InputError, one_line
from project.runtime.text import duration

ENDED = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
        *("PREEMPTED", "REVOKED", "TIMEOUT"),
    }
)
"""States of jobs that SLURM does not start again. A requeued job is `REQUEUED`, `COMPLETING` or `PENDING`."""
COMMAND_LIMIT_S = 60.0
"""Time after which a command of SLURM counts as failed; without a controller, it gives up after 9 s."""
OUTAGE_INTERVAL_S = 15.0
"""Interval between queries while the controller does not answer [s]."""
FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 300.0
PERMANENT_REFUSAL = re.compile(
    r"invalid (?!authentication)|not available$|cannot be satisfied|can not be satisfied|not permitted"
    r"|unrecognized option|more (processors|tasks|nodes) requested",
    re.IGNORECASE,
)
"""Errors of `sbatch` about the options of a job, which no repetition changes."""


class QueuedJob(NamedTuple):
    """State of a job in SLURM's queue."""

    state: str
    reason: str


class SlurmQueue:
    """States of this user's jobs, from `squeue`, which does not need SLURM's accounting.

    SLURM keeps a finished job in the queue for minutes (`MinJobAge`), and a requeued job all the time.

    Args:
        report: function that prints a line.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report
        self._jobs: dict[str, QueuedJob] | None = None
        self._last_query_s = -math.inf
        self._is_answering = True

    @property
    def age_s(self) -> float:
        """Time since the last query."""
        return time.monotonic() - self._last_query_s

    def query(self) -> bool:
        """Ask SLURM for the states; return false if its controller does not answer."""
        if not self._is_answering and self.age_s < OUTAGE_INTERVAL_S:
            return False
        command = [
            *("squeue", f"--user={os.getuid()}", "--states=all", "--array", "--noheader"),
            "--format=%i|%T|%r",
        ]
        error, output = run(command)
        self._last_query_s = time.monotonic()
        if error:
            if self._is_answering:
                self.report(f"SLURM does not answer ({error}); its jobs continue, and the sweep waits")
            self._is_answering, self._jobs = False, None
            return False
        if not self._is_answering:
            self.report("SLURM answers again")
        self._is_answering = True
        self._jobs = parse_queue(output)
        return True

    def add(self, job_id: str) -> None:
        """Add a job that was submitted since the last query."""
        if self._jobs is not None:
            self._jobs[job_id] = QueuedJob("PENDING", "None")

    def state(self, job_id: str) -> QueuedJob | None:
        """Return the state of a job at the last query; None if SLURM has removed the job from the queue."""
        return None if self._jobs is None else self._jobs.get(job_id)

    def holds(self, job_id: str) -> bool:
        """Return true if SLURM runs a job or will start it (again), or if the state is unknown."""
        if self._jobs is None:
            return True
        found = self._jobs.get(job_id)
        return found is not None and found.state not in ENDED

    def is_ending(self, job_id: str) -> bool:
        """Return true unless a job waits for its start."""
        found = self.state(job_id)
        return found is None or found.state not in ("PENDING", "REQUEUE_HOLD", "REQUEUED")


class ArrayLimits:
    """Sizes of job arrays, and their limits of running tasks, which add up to at most `jobs`.

    Args:
        jobs: maximum number of jobs that run at the same time (None: no limit).
    """

    def __init__(self, jobs: int | None) -> None:
        self.jobs = math.inf if jobs is None else jobs
        self._limits: dict[str, float] = {}  # by id of the array; none for arrays of an earlier process
        self._max_tasks: int | None = None

    def max_tasks(self) -> int:
        """Return the maximum number of tasks of an array; 0 if SLURM does not answer."""
        if self._max_tasks is None:
            error, output = run(["scontrol", "show", "config"])
            self._max_tasks = None if error else parse_max_tasks(output)
        return self._max_tasks or 0

    def shrink(self, num_tasks: int) -> None:
        """Halve the next array: the refused one may exceed a user's limit of submitted jobs."""
        self._max_tasks = max(1, num_tasks // 2)

    def add(self, job_id: str, limit: float) -> None:
        """Record the limit of a submitted array, given the id of one of its tasks."""
        self._limits[array_of(job_id)] = limit

    def room(self, job_ids: Iterable[str]) -> float:
        """Return how many more jobs may run, given the submitted jobs that have not ended."""
        tasks = Counter(map(array_of, job_ids))
        return self.jobs - sum(min(left, self._limits.get(one, self.jobs)) for one, left in tasks.items())

    def update(self, job_ids: Iterable[str]) -> None:
        """Raise the limits of arrays, the oldest first, if jobs of other arrays have ended."""
        if math.isinf(self.jobs):
            return
        room = self.jobs
        ids = list(job_ids)
        arrays = {array_of(job_id) for job_id in ids if "_" in job_id}
        for array, left in Counter(map(array_of, ids)).items():
            share = max(1, min(left, room))  # SLURM takes 0 for no limit
            room -= share
            if array in arrays and self._limits.get(array, 0) < share:
                error, _ = run(["scontrol", "update", f"JobId={array}", f"ArrayTaskThrottle={share}"])
                if not error:
                    self._limits[array] = share


def array_of(job_id: str) -> str:
    """Return the id of a task's array; of a job without an array, its own id."""
    return job_id.partition("_")[0]


def parse_max_tasks(config: str) -> int:
    """Read the maximum number of tasks of an array from the output of `scontrol show config`."""
    found = re.findall(r"^MaxArraySize\s*= (\d+)|\bmax_array_tasks=(\d+)", config, re.MULTILINE)
    return max(1, min((int(size or tasks) for size, tasks in found), default=1))


class Refusals:
    """Refusals of `sbatch` in a row, after which submission is repeated with growing pauses.

    Args:
        report: function that prints a line.
        limit_s: time after which to give up, unless own jobs are queued or running [s].
    """

    def __init__(self, report: Callable[[str], None], limit_s: float) -> None:
        self.report = report
        self.limit_s = limit_s
        self._first_s: float | None = None
        self._next_s = -math.inf
        self._pause_s = FIRST_PAUSE_S
        self._message = ""

    @property
    def are_pausing(self) -> bool:
        """True while it is too early for another attempt."""
        return time.monotonic() < self._next_s

    @property
    def is_by_limit(self) -> bool:
        """True if the last refusal names a limit, which a smaller array may not exceed."""
        return "limit" in self._message.lower()

    def add(self, message: str, *, has_jobs: bool) -> bool:
        """Record a refusal; return false if it is time to give up."""
        now_s = time.monotonic()
        if self._first_s is None or has_jobs:
            self._first_s = now_s
        if now_s - self._first_s > self.limit_s:
            return False
        if message != self._message:
            self.report(
                f"sbatch refuses a job ({message}); repeated every {duration(FIRST_PAUSE_S)} to "
                f"{duration(LONGEST_PAUSE_S)}"
            )
        self._message = message
        self._next_s, self._pause_s = now_s + self._pause_s, min(2 * self._pause_s, LONGEST_PAUSE_S)
        return True

    def end(self) -> None:
        """Record that `sbatch` accepted a job."""
        if self._message:
            self.report("sbatch accepts jobs again")
        self.retry_soon()
        self._first_s, self._message = None, ""

    def retry_soon(self) -> None:
        """Shorten the pause: a job ended, which may make room for another."""
        self._next_s, self._pause_s = -math.inf, FIRST_PAUSE_S


def explain_refusal(error: Exception) -> tuple[str, bool]:
    """Return the reason why `sbatch` refused a job, and true if it would refuse the same job again."""
    lines = re.findall(r"^sbatch: error: (.+)$", str(error), re.MULTILINE)
    reason = lines[-1].removeprefix("Batch job submission failed: ") if lines else one_line(error)
    return reason, any(PERMANENT_REFUSAL.search(line) for line in lines)


def parse_queue(output: str) -> dict[str, QueuedJob]:
    """Read the lines `id|state|reason` of `squeue`.

    A job that ended before a later attempt may have several lines, of which the one of a live job counts.
    """
    jobs: dict[str, QueuedJob] = {}
    for line in output.splitlines():
        job_id, _, rest = line.strip().partition("|")
        state, _, reason = rest.partition("|")
        if state and (job_id not in jobs or jobs[job_id].state in ENDED):
            jobs[job_id] = QueuedJob(state, reason)
    return jobs


def cancel(job_ids: Iterable[str]) -> str:
    """Cancel jobs: SLURM drops queued jobs and gives running ones its own grace period.

    Returns:
        The error, empty if there is none.
    """
    tasks: dict[str, list[str]] = {}
    for job_id in job_ids:
        array, _, task = job_id.partition("_")
        tasks.setdefault(array, []).append(task)
    ids = [f"{array}_[{','.join(own)}]" if own[0] else array for array, own in tasks.items()]
    return run(["scancel", "--quiet", *ids])[0] if ids else ""


def run(command: list[str]) -> tuple[str, str]:
    """Run a command of SLURM; return its error (empty if it succeeded) and its output.

    Raises:
        InputError: this machine does not have the command.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_LIMIT_S, check=False, process_group=0
        )  # in a group of its own, which Ctrl-C does not reach
    except FileNotFoundError as error:
        raise InputError(
            f"hydra/launcher=slurm: no {command[0]} here; start the sweep where sbatch works"
        ) from error
    except subprocess.TimeoutExpired:
        return f"{command[0]} takes longer than {duration(COMMAND_LIMIT_S)}", ""
    if done.returncode:
        return " ".join(done.stderr.split()) or f"{command[0]}: exit code {done.returncode}", ""
    return "", done.stdout
