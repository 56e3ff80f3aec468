"""The processes of the ranks, as their parent sees them: running, stopped or ended.

The parent learns from the kernel (`waitpid`) that a rank was stopped by SIGSTOP, a debugger or a scheduler. A
heartbeat from the rank would also be missed while it imports, compiles or swaps. A deadlocked rank is found
by the others: their collective operation times out after `trainer.timeout_min`.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import time
from typing import NamedTuple

KILL_S = 10.0
"""Seconds to wait for a killed process. One that waits for a dead file system cannot exit."""

DUMP_SIGNAL = signal.SIGUSR2
DUMP_S = 0.5


class RunningClock:
    """Clock that stands while this process is stopped, as by Ctrl-Z or a closed lid.

    Args:
        max_step_s: largest advance between two readings, in seconds.
    """

    def __init__(self, max_step_s: float = 1.0) -> None:
        self.max_step_s = max_step_s
        self.now = 0.0
        self._last = time.monotonic()

    def read(self) -> float:
        now = time.monotonic()
        self.now += min(now - self._last, self.max_step_s)
        self._last = now
        return self.now


class RankExit(NamedTuple):
    """Exit of the process of a rank.

    Args:
        rank: number of the rank.
        code: exit code, or the negative number of the signal that killed the process.
        when: time at which the parent noticed, on `time.monotonic`, in seconds.
    """

    rank: int
    code: int
    when: float


class RankGroup:
    """Processes of all ranks.

    Args:
        count: number of ranks.
    """

    def __init__(self, count: int) -> None:
        self.clock = RunningClock()
        self.running: dict[int, int] = {}  # process id: rank
        self.exits: list[RankExit] = []
        self.killed: set[int] = set()  # ranks
        self._stopped: dict[int, float] = {}  # process id: time of the stop
        self._dumps = [os.pipe() for _ in range(count)]
        for end in (end for pair in self._dumps for end in pair):
            os.set_blocking(end, False)

    def join(self, rank: int) -> None:
        """In a rank: let the parent request a stack trace, even while Python's lock is held."""
        with contextlib.suppress(OSError):  # a limit on open files
            faulthandler.register(DUMP_SIGNAL, file=self._dumps[rank][1], all_threads=False)

    def poll(self) -> list[RankExit]:
        """Return the ranks that exited since the last call."""
        now, exits = self.clock.read(), []
        for pid, rank in list(self.running.items()):
            seen, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            if not seen:
                continue
            if os.WIFSTOPPED(status):
                self._stopped.setdefault(pid, now)
            elif os.WIFCONTINUED(status):
                self._stopped.pop(pid, None)
            else:
                del self.running[pid]
                self._stopped.pop(pid, None)
                exits.append(RankExit(rank, os.waitstatus_to_exitcode(status), time.monotonic()))
        self.exits += exits
        return exits

    def stopped_ranks(self, limit_s: float) -> list[int]:
        """Return the ranks that have been stopped for longer than `limit_s` seconds."""
        return [self.running[pid] for pid, since in self._stopped.items() if self.clock.now - since > limit_s]

    def stack_of(self, rank: int) -> list[str]:
        """Return the stack of a running rank, innermost call first; empty if the rank does not answer."""
        pid = next(pid for pid, number in self.running.items() if number == rank)
        dump, deadline = "", time.monotonic() + DUMP_S
        with contextlib.suppress(OSError):
            os.kill(pid, DUMP_SIGNAL)
            while time.monotonic() < deadline:
                time.sleep(DUMP_S / 10)
                with contextlib.suppress(BlockingIOError):
                    dump += os.read(self._dumps[rank][0], 65536).decode(errors="replace")
        return [line.strip() for line in dump.splitlines() if line.strip().startswith("File ")]

    def send(self, number: int) -> None:
        """Send a signal to all running ranks."""
        for pid in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Kill all running ranks and wait for them."""
        self.killed |= set(self.running.values())
        self.send(signal.SIGKILL)
        deadline = time.monotonic() + KILL_S
        while self.running and time.monotonic() < deadline:
            self.poll()
            time.sleep(0.01)
        if self.running:
            print(f"processes {list(self.running)} cannot be killed", file=sys.stderr)
            self.running.clear()

    def close(self) -> None:
        """Close the pipes of the group."""
        for end in (end for pair in self._dumps for end in pair):
            os.close(end)
