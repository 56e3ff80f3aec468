"""Limits of a job's duration, and of the time in which it writes nothing to its folder."""

import math
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from project.runtime.text import duration
from project.sweeps.engine import JobProcess

CHECK_INTERVAL_S = 1.0


class JobLimits(NamedTuple):
    """Limits of a job in seconds; infinity: no limit."""

    stuck_after_s: float = math.inf
    job_timeout_s: float = math.inf
    grace_s: float = 30.0


class Watchdog:
    """Stops a job that is stuck or runs too long, and kills it after a grace period.

    A job is stuck if no file of its folder changes: log, metrics, status and checkpoints. While it trains, a
    job writes a line to its log every minute (`callbacks.progress.heartbeat_s`).

    Args:
        process: the job's process.
        folder: the job's folder.
        limits: limits of the job.
    """

    def __init__(self, process: JobProcess, folder: Path, limits: JobLimits) -> None:
        self.process = process
        self.folder = folder
        self.limits = limits
        self.error = ""
        """Reason why the job was stopped; empty if it was not."""
        self._started_s = self._changed_s = self._checked_s = time.monotonic()
        self._stopped_s = math.inf
        self._files: dict[str, tuple[int, int]] = {}

    def check(self) -> None:
        """Stop the job if it has exceeded a limit; call this often while the job runs."""
        now_s = time.monotonic()
        if self.error:
            if now_s - self._stopped_s > self.limits.grace_s:
                self.process.kill()
            return
        self.error = self._find_problem(now_s)
        if self.error:
            self._stopped_s = now_s
            self.process.interrupt()

    def _find_problem(self, now_s: float) -> str:
        if now_s - self._started_s > self.limits.job_timeout_s:
            return f"hydra.launcher.job_timeout_s={self.limits.job_timeout_s:g}: the job took longer"
        limit_s = self.limits.stuck_after_s
        if limit_s == math.inf or now_s - self._checked_s < min(CHECK_INTERVAL_S, limit_s / 4):
            return ""
        self._checked_s = now_s
        if (files := read_changes(self.folder)) != self._files:
            self._files, self._changed_s = files, now_s
        if now_s - self._changed_s <= limit_s:
            return ""
        idle = duration(now_s - self._changed_s)
        return f"hydra.launcher.stuck_after_s={limit_s:g}: no file of the job's folder changed for {idle}"


def read_changes(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the time of change [ns] and the size [bytes] of all files below a folder."""
    found: dict[str, tuple[int, int]] = {}
    for path, _, names in os.walk(folder):
        for name in names:
            file = f"{path}/{name}"
            with suppress(OSError):  # removed in the meantime
                facts = os.lstat(file)
                found[file] = (facts.st_mtime_ns, facts.st_size)
    return found
