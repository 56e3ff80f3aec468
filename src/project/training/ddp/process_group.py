"""The ranks of a run as the process that forked them sees them: which ended, stand still, or are left.

That a rank stands still (SIGSTOP, a debugger's or a scheduler's doing) its parent learns from the kernel, by
`waitpid`. A beat that each rank had to give, from a thread or from its loop, would also be missed where a
rank is only busy: importing, compiling, unpickling, all of which hold Python's lock, or swapping. A rank that
runs but does not get on, in a deadlock or on a dead file system, is noticed by those that wait for it, whose
collective ends with an error after `trainer.timeout_min`.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import time
from typing import NamedTuple

KILL_S = 10.0
"""Seconds after which a killed process is given up: one that waits for a dead file system cannot even die."""

DUMP_SIGNAL = signal.SIGUSR2
DUMP_S = 0.5


class Clock:
    """Seconds during which this process ran.

    Where it was stopped itself, with all ranks (Ctrl-Z, a closed lid), nobody was late in that time.

    Args:
        most_s: that may pass between two looks at the clock.
    """

    def __init__(self, most_s: float = 1.0) -> None:
        self.most_s = most_s
        self.now = 0.0
        self._last = time.monotonic()

    def look(self) -> float:
        """Return the time."""
        now = time.monotonic()
        self.now += min(now - self._last, self.most_s)
        self._last = now
        return self.now


class End(NamedTuple):
    """A rank's process has ended.

    Args:
        rank: whose.
        code: its exit code; negative: the signal that killed it.
        when: on `time.monotonic`, when it was seen.
    """

    rank: int
    code: int
    when: float


class RankGroup:
    """The processes of a run.

    Args:
        count: how many there will be.
    """

    def __init__(self, count: int) -> None:
        self.clock = Clock()
        self.running: dict[int, int] = {}  # process id: rank
        self.ends: list[End] = []
        self.killed: set[int] = set()  # ranks that this process killed
        self._stopped: dict[int, float] = {}  # process id: since when
        self._dumps = [os.pipe() for _ in range(count)]
        for end in (end for pair in self._dumps for end in pair):
            os.set_blocking(end, False)

    def join(self, rank: int) -> None:
        """In a rank: have `where_is` find out where it is, even while it holds Python's lock."""
        with contextlib.suppress(OSError):  # a limit on open files
            faulthandler.register(DUMP_SIGNAL, file=self._dumps[rank][1], all_threads=False)

    def look(self) -> list[End]:
        """Return the ranks that have ended since the last look."""
        now, ended = self.clock.look(), []
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
                ended.append(End(rank, os.waitstatus_to_exitcode(status), time.monotonic()))
        self.ends += ended
        return ended

    def still(self, limit_s: float) -> list[int]:
        """Ranks that have been standing still for longer than this."""
        return [self.running[pid] for pid, since in self._stopped.items() if self.clock.now - since > limit_s]

    def where_is(self, rank: int) -> list[str]:
        """Ask a rank that runs for the lines of Python that it is in, innermost first; none: no answer."""
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
        """Send a signal to all ranks that are left."""
        for pid in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """End all ranks that are left, and wait for them."""
        self.killed |= set(self.running.values())
        self.send(signal.SIGKILL)
        deadline = time.monotonic() + KILL_S
        while self.running and time.monotonic() < deadline:
            self.look()
            time.sleep(0.01)
        if self.running:
            print(f"processes {list(self.running)} cannot be killed", file=sys.stderr)
            self.running.clear()

    def close(self) -> None:
        """Give back what belongs to the group, when all ranks have ended."""
        for end in (end for pair in self._dumps for end in pair):
            os.close(end)
