"""Processes of the ranks, and the reports that ranks send to their parent.

The kernel (`waitpid`) notifies the parent that a rank was stopped by SIGSTOP, a debugger or a scheduler. A
heartbeat would not do: ranks also miss heartbeats while they import, compile or swap. A deadlocked rank is
detected by the other ranks, whose collective operation times out after `trainer.timeout_min`.

A failing rank prints nothing, because its error may be caused by the error of another rank. The rank writes a
report to shared memory, and the parent prints the first report.
"""

import faulthandler
import io
import json
import mmap
import os
import re
import signal
import struct
import sys
import time
from contextlib import redirect_stderr, suppress
from typing import NamedTuple

from project.config import cli
from project.errors import summarize

KILL_S = 10.0
"""Time to wait for a killed process, s. A process that waits for a dead file system cannot exit."""

DUMP_SIGNAL = signal.SIGUSR2
DUMP_S = 0.5
MAX_STEP_S = 1.0
"""Maximum advance of `RunningClock` between two readings, s."""


class RunningClock:
    """Clock that pauses while this process is stopped (Ctrl-Z) or the computer sleeps."""

    def __init__(self) -> None:
        self.now = 0.0  # [s]
        self._last = time.monotonic()

    def read(self) -> float:
        now = time.monotonic()
        self.now += min(now - self._last, MAX_STEP_S)
        self._last = now
        return self.now


class RankExit(NamedTuple):
    """Exit of the process of a rank."""

    rank: int
    code: int  # exit code, or the negative number of the signal that killed the process
    when: float  # time of detection by the parent, on `time.monotonic` [s]


class RankGroup:
    """Processes of all ranks."""

    def __init__(self, count: int) -> None:
        self.clock = RunningClock()
        self.running: dict[int, int] = {}  # process id: rank
        self.exits: list[RankExit] = []
        self.killed: set[int] = set()  # ranks
        self._stopped: dict[int, float] = {}  # process id: time of the stop
        self._dumps = [os.pipe() for _ in range(count)]
        for end in (end for pair in self._dumps for end in pair):
            os.set_blocking(end, False)

    def register_stack_dump(self, rank: int) -> None:
        """Let the parent request a stack trace of this rank, even while the GIL is held; call in the rank."""
        with suppress(OSError):  # too many open files
            faulthandler.register(DUMP_SIGNAL, file=self._dumps[rank][1], all_threads=False)

    def poll(self) -> list[RankExit]:
        """Return the exits of ranks since the last call."""
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
        """Return the stack of a running rank, innermost call first; empty if the rank does not respond."""
        pid = next(pid for pid, number in self.running.items() if number == rank)
        dump, deadline = "", time.monotonic() + DUMP_S
        with suppress(OSError):
            os.kill(pid, DUMP_SIGNAL)
            while time.monotonic() < deadline:
                time.sleep(DUMP_S / 10)
                with suppress(BlockingIOError):
                    dump += os.read(self._dumps[rank][0], 65536).decode(errors="replace")
        return [line.strip() for line in dump.splitlines() if line.strip().startswith("File ")]

    def send(self, number: int) -> None:
        """Send a signal to all running ranks."""
        for pid in self.running:
            with suppress(ProcessLookupError):
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


LENGTH_FIELD = struct.Struct("<Q")
MAX_CHARACTERS = 16_000
REPORT_BYTES = 16 * MAX_CHARACTERS  # JSON needs up to 12 bytes per character; unused pages need no memory

BROKEN_CONNECTION = re.compile(
    r"connection (was )?(likely )?(closed|reset|refused)|broken pipe|socket (error|timeout|closed)|gloo|nccl"
    r"|timed out waiting|remote (process|peer)",
    re.IGNORECASE,
)


class RankReport(NamedTuple):
    """Report of why a rank ended."""

    when: float  # on `time.monotonic`, which all processes of a machine share [s]
    exit_code: int
    output: str = ""  # error message or traceback
    summary: str = ""  # the error on one line
    is_connection_error: bool = False  # another rank's exit may have caused the error
    signal: int = 0  # stop signal on which all ranks stopped; 0 if the rank failed

    @classmethod
    def of(cls, error: BaseException) -> "RankReport":
        when, output = time.monotonic(), io.StringIO()
        with redirect_stderr(output):
            exit_code = cli.report(error)
        summary = ": ".join(dict.fromkeys([type(error).__name__, summarize(error)]))
        return cls(when, exit_code, output.getvalue(), summary, _is_connection_error(error))


def _is_connection_error(error: BaseException | None) -> bool:
    from torch.distributed import DistError

    while error is not None:
        if isinstance(error, DistError):
            return True
        if isinstance(error, RuntimeError | OSError) and BROKEN_CONNECTION.search(str(error)):
            return True
        error = error.__cause__
    return False


class SharedStatus:
    """Shared memory with one report per rank, allocated before the fork."""

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, count * REPORT_BYTES)

    def write(self, rank: int, report: RankReport) -> None:
        """Write the report of a rank; the length is written last, so that no reader sees a partial report."""
        truncated = report._replace(
            output=report.output[-MAX_CHARACTERS:], summary=report.summary[: MAX_CHARACTERS // 8]
        )
        text = json.dumps(truncated).encode()
        start = rank * REPORT_BYTES
        body = start + LENGTH_FIELD.size
        self._memory[body : body + len(text)] = text
        LENGTH_FIELD.pack_into(self._memory, start, len(text))

    def read(self, rank: int) -> RankReport | None:
        """Return the report of a rank; None if the rank has not written any."""
        start = rank * REPORT_BYTES
        (length,) = LENGTH_FIELD.unpack_from(self._memory, start)
        body = start + LENGTH_FIELD.size
        return RankReport(*json.loads(self._memory[body : body + length])) if length else None
