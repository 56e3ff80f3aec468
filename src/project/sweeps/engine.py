"""Base class of engines, which run jobs, and the process of one job on this machine."""

import os
import pickle
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from project.sweeps.job_process import JobMessage, JobSpec

POLL_S = 0.01


class JobExit(NamedTuple):
    """Exit of a job's process."""

    number: int
    exit_code: int | None  # negative: the signal that killed its process; None: unknown
    duration_s: float | None = None  # where it differs from the time between start and end
    error: str = ""  # reason why the engine stopped the job


class EngineClosedError(RuntimeError):
    """The engine starts no more jobs; those that run continue."""


class Engine(ABC):
    """Place where jobs run; a job's result is read from its folder."""

    handles_signals = True
    """True if the scheduler handles signals; false if jobs run in this process and handle them."""
    print_line: Callable[[str], None] = staticmethod(print)
    """Function that prints a line."""

    def set_print(self, print_line: Callable[[str], None]) -> None:
        """Set the function that prints a line."""
        self.print_line = print_line

    def report(self, line: str) -> None:
        """Print a line about the place where the jobs run."""
        self.print_line(line)

    @abstractmethod
    def has_capacity(self) -> bool:
        """Return True if a job could start now."""

    def reattach(self, spec: JobSpec) -> bool:
        """Return True if the job still runs since an earlier process of this sweep started it."""
        return False

    @abstractmethod
    def start(self, spec: JobSpec) -> bool:
        """Start a job, if it was not reattached; return false if it cannot start yet.

        Raises:
            InputError: the job can never start.
            EngineClosedError: no job can start any more.
        """

    @abstractmethod
    def wait(self, timeout_s: float) -> list[JobExit]:
        """Wait until a job ends or the time is over; return the jobs that ended since the last call."""

    @abstractmethod
    def interrupt(self) -> None:
        """Request all jobs to stop."""

    @abstractmethod
    def kill(self) -> None:
        """Kill all jobs."""


class JobProcess:
    """Leader of a job's process group, a child of this process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._exit_code: int | None = None

    @classmethod
    def start_fresh(cls, message: JobMessage) -> "JobProcess":
        """Start a job in a new interpreter."""
        with message.spec.log_file.open("ab") as log:
            output: Any = None if message.rank else log
            process = subprocess.Popen(
                [sys.executable, "-m", "project.sweeps.job_process"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=os.environ | message.environment,
                process_group=0,
            )
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as pipe:
            pickle.dump(message, pipe)
        process.returncode = 0  # `poll` reaps the process, not Popen
        return cls(process.pid)

    def poll(self) -> int | None:
        """Return the exit code, None while the process runs."""
        if self._exit_code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                code = os.waitstatus_to_exitcode(status) if pid else None
            except ChildProcessError:  # a signal handler has reaped the process
                code = -signal.SIGKILL
            if code is not None:
                self._exit_code = code
                self.kill()  # remaining processes of its group
        return self._exit_code

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Return the exit code, None if the process still runs after the time-out."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (code := self.poll()) is None and (deadline is None or time.monotonic() < deadline):
            time.sleep(POLL_S)
        return code

    def interrupt(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGINT)

    def kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def stop(self, grace_s: float) -> None:
        """Interrupt the job and kill it after a grace period."""
        if self.poll() is None:
            self.interrupt()
            if self.wait(grace_s) is None:
                self.kill()
                self.wait()
