"""Jobs as processes of this machine."""

import importlib
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from typing import Literal, NamedTuple, Protocol

from hydra.types import TaskFunction

from project.runtime.streams import flush
from project.runtime.training_imports import complete, without_garbage_collection
from project.sweeps.device_slots import Grant, Slots
from project.sweeps.job_process import Letter, Order, become_job, environment_of, log_of, run_order

POLL_S = 0.01


class Ended(NamedTuple):
    """A job's process has ended.

    Args:
        number: of the job.
        exit_code: of its process; negative: the signal that killed it; None where nobody knows.
    """

    number: int
    exit_code: int | None


class Engine(Protocol):
    """Where jobs run. It starts them and tells of their end; what became of them stands in their folders."""

    def has_room(self) -> bool:
        """Whether some job might be started now."""
        ...

    def adopt(self, order: Order) -> bool:
        """Whether an earlier process of this sweep started a job that runs on: `start` then takes it over."""
        ...

    def start(self, order: Order) -> bool:
        """Start a job, unless its devices are taken: then return False."""
        ...

    def wait(self, timeout_s: float) -> list[Ended]:
        """Return the jobs that have ended since the last call, after waiting a while for one."""
        ...

    def interrupt(self) -> None:
        """Ask all jobs to stop."""
        ...

    def kill(self) -> None:
        """End all jobs now."""
        ...


class ProcessEngine:
    """A process group for each job, on the devices that are free.

    Args:
        function: the task.
        slots: the devices.
        start: `fork`: a copy of this process, in milliseconds; `fresh`: a new interpreter.
    """

    def __init__(
        self,
        function: TaskFunction,
        slots: Slots,
        start: Literal["fork", "fresh"] = "fork",
    ) -> None:
        self.function = function
        self.slots = slots
        self.how = start
        self._running: dict[int, tuple[int, Grant]] = {}  # process id: job's number, devices

    def has_room(self) -> bool:
        """See `Engine`."""
        return not self.slots.full

    def adopt(self, order: Order) -> bool:
        """See `Engine`. Processes end with their sweep."""
        return False

    def start(self, order: Order) -> bool:
        """See `Engine`."""
        if (grant := self.slots.take(order.need)) is None:
            return False
        process = self._fork(order, grant) if self.how == "fork" else self._start_fresh(order, grant)
        self._running[process] = (order.number, grant)
        return True

    def wait(self, timeout_s: float) -> list[Ended]:
        """See `Engine`."""
        deadline = time.monotonic() + timeout_s
        while not (ended := list(self._ended())) and time.monotonic() < deadline:
            self._sleep(deadline - time.monotonic())
        return ended

    def _sleep(self, most_s: float) -> None:
        """Sleep until a job's process ends, where the system can tell; a moment elsewhere."""
        if not hasattr(os, "pidfd_open"):
            time.sleep(min(most_s, POLL_S))
            return
        poll = select.poll()
        with ExitStack() as stack:
            for process in self._running:
                end = os.pidfd_open(process)
                stack.callback(os.close, end)
                poll.register(end, select.POLLIN)
            poll.poll(max(0.0, 1000 * most_s))

    def interrupt(self) -> None:
        """See `Engine`. The first process of a job tells its ranks itself."""
        for process in self._running:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGINT)

    def kill(self) -> None:
        """See `Engine`."""
        for process in self._running:
            self._kill_group(process)

    def _ended(self) -> Iterator[Ended]:
        for process, (number, grant) in list(self._running.items()):
            pid, status = os.waitpid(process, os.WNOHANG)
            if pid:
                self._kill_group(process)  # what it may have left behind
                del self._running[process]
                self.slots.give_back(grant)
                yield Ended(number, os.waitstatus_to_exitcode(status))

    def _fork(self, order: Order, grant: Grant) -> int:
        flush()
        parent = os.getpid()
        process = os.fork()
        if process:
            with suppress(OSError):  # in both processes, so that it has happened before either goes on
                os.setpgid(process, process)
            return process
        code = 1
        try:
            become_job(log_of(order), environment_of(grant), parent)
            _limit_threads(grant)
            code = run_order(order, self.function)
        finally:
            os._exit(code)

    def _start_fresh(self, order: Order, grant: Grant) -> int:
        return start_fresh(Letter(order, environment_of(grant), os.getpid()))

    def _kill_group(self, process: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process, signal.SIGKILL)


def start_fresh(letter: Letter) -> int:
    """Start a job in a new interpreter; return its process id, for the caller to wait for."""
    with log_of(letter.order).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "project.sweeps.job_process"],
            stdin=subprocess.PIPE,
            stdout=None if letter.rank else log,
            stderr=None if letter.rank else log,
            env=os.environ | letter.environment,
            process_group=0,
        )
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as pipe:
        pickle.dump(letter, pipe)
    process.returncode = 0  # waited for by the caller, not by Popen
    return process.pid


def _limit_threads(grant: Grant) -> None:
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(grant.threads * grant.need.ranks)


def preload(modules: Iterable[str]) -> None:
    """Import what jobs need, once for all of them. What cannot be imported is left to the jobs to tell."""
    with without_garbage_collection():
        for name in filter(None, modules):
            with suppress(Exception):
                importlib.import_module(name)
        complete()
