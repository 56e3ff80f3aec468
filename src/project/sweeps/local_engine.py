"""Engines, which run jobs somewhere; and the engine that runs jobs as processes of this machine."""

import importlib
import os
import pickle
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from hydra.types import TaskFunction

from project.runtime.lazy_imports import gc_disabled, import_pending
from project.runtime.process import flush_streams
from project.sweeps.device_slots import DeviceLease, DeviceSlots
from project.sweeps.job_process import JobMessage, JobSpec, become_job, lease_environment, run_job

POLL_S = 0.01


class JobExit(NamedTuple):
    """End of a job."""

    number: int
    exit_code: int | None  # negative: the signal that killed its process; None: unknown
    duration_s: float | None = None  # where it differs from the time between start and end


class Engine(ABC):
    """Place where jobs run. The result of a job stands in its folder."""

    handles_signals = True
    """The scheduler notes signals; else jobs run in this process and handle signals themselves."""

    @abstractmethod
    def has_room(self) -> bool:
        """Return true if some job could start now."""

    def adopt(self, spec: JobSpec) -> bool:
        """Return true if an earlier process of this sweep started the job and it still runs."""
        return False

    @abstractmethod
    def start(self, spec: JobSpec) -> bool:
        """Start a job, or take over an adopted one; return false while its devices are taken."""

    @abstractmethod
    def wait(self, timeout_s: float) -> list[JobExit]:
        """Wait for an end; return the jobs that ended since the last call."""

    @abstractmethod
    def interrupt(self) -> None:
        """Ask all jobs to stop."""

    @abstractmethod
    def kill(self) -> None:
        """End all jobs now."""


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
        process.returncode = 0  # `poll` waits for the process, not Popen
        return cls(process.pid)

    def poll(self) -> int | None:
        """Return the exit code, None while the process runs."""
        if self._exit_code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                code = os.waitstatus_to_exitcode(status) if pid else None
            except ChildProcessError:  # a signal handler waited for the process
                code = -signal.SIGKILL
            if code is not None:
                self._exit_code = code
                self.kill()  # processes that it left behind
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
        """Interrupt the job, and kill it after a grace period."""
        if self.poll() is None:
            self.interrupt()
            if self.wait(grace_s) is None:
                self.kill()
                self.wait()


class ProcessEngine(Engine):
    """Run each job as a process group on leased devices of this machine.

    `fork` copies this process in milliseconds, `fresh` starts a new interpreter.
    """

    def __init__(
        self, function: TaskFunction, slots: DeviceSlots, method: Literal["fork", "fresh"] = "fork"
    ) -> None:
        self.function = function
        self.slots = slots
        self.method = method
        self._running: dict[int, tuple[JobProcess, DeviceLease]] = {}  # by number of the job

    def has_room(self) -> bool:
        return not self.slots.are_full

    def start(self, spec: JobSpec) -> bool:
        if (lease := self.slots.lease(spec.request)) is None:
            return False
        if self.method == "fork":
            process = self._fork(spec, lease)
        else:
            process = JobProcess.start_fresh(JobMessage(spec, lease_environment(lease), os.getpid()))
        self._running[spec.number] = (process, lease)
        return True

    def wait(self, timeout_s: float) -> list[JobExit]:
        deadline = time.monotonic() + timeout_s
        while not (ended := self._collect()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return ended

    def interrupt(self) -> None:
        for process, _ in self._running.values():
            process.interrupt()  # the leader interrupts its ranks

    def kill(self) -> None:
        for process, _ in self._running.values():
            process.kill()

    def _collect(self) -> list[JobExit]:
        ended = []
        for number, (process, lease) in list(self._running.items()):
            if (code := process.poll()) is not None:
                del self._running[number]
                self.slots.release(lease)
                ended.append(JobExit(number, code))
        return ended

    def _fork(self, spec: JobSpec, lease: DeviceLease) -> JobProcess:
        flush_streams()
        parent = os.getpid()
        pid = os.fork()
        if pid:
            with suppress(OSError):  # in both processes, so that neither continues before
                os.setpgid(pid, pid)
            return JobProcess(pid)
        code = 1
        try:
            become_job(spec.log_file, lease_environment(lease), parent)
            if (torch := sys.modules.get("torch")) is not None:
                torch.set_num_threads(lease.threads * lease.request.ranks)
            code = run_job(spec, self.function)
        finally:
            os._exit(code)


def preload(modules: Iterable[str]) -> None:
    """Import the modules of the jobs once for all of them. Jobs report modules that cannot be imported."""
    with gc_disabled():
        for name in filter(None, modules):
            with suppress(Exception):
                importlib.import_module(name)
        import_pending()
