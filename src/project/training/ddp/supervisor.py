"""Watching over the ranks of a run: what ends them, and which cause came first."""

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from project.errors import DataError, InputError, NonFiniteError
from project.runtime.signals import REPEAT_S, SIGNALS, Request, Stopped
from project.training.ddp.process_group import End, RankGroup
from project.training.ddp.shared_status import Report, Reports

POLL_S = 0.02
HEARTBEAT_S = 10.0
"""Seconds that a rank may stand still (SIGSTOP) while the others wait for it."""

SETTLE_S = 1.0
"""Seconds after a failure in which other ranks may end by themselves, and in which the first cause shows: a
rank that noticed the end of another one may be seen before it."""

GRACE_S = 30.0
"""Seconds that ranks have to finish a step and save, once they were told to stop: as many as torchrun and
SLURM give."""

LEAVE_S = 5.0
"""Seconds that they have where there is nothing to save, to leave what they are doing."""

SEEN_S = 5 * POLL_S
"""Seconds by which a process may have ended before that is seen."""

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TOLD = "error: "
KINDS = {kind.exit_code: kind for kind in (InputError, DataError, NonFiniteError)}


class RankFailedError(RuntimeError):
    """A rank ended with an error.

    Args:
        message: which and how.
        exit_code: of that rank.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Watch:
    """What the parent of the ranks does while they train.

    Args:
        group: the ranks' processes.
        reports: what they have to say.
        request: by which they are told to stop.
        count: of ranks.
    """

    def __init__(self, group: RankGroup, reports: Reports, request: Request, count: int) -> None:
        self.group = group
        self.reports = reports
        self.request = request
        self.count = count
        self._signal = 0  # the first, which decides what becomes of the run
        self._pressing = self._told = 0  # the last that limits the time
        self._since = -math.inf
        self._impatient = False
        self._deadline = math.inf  # on the group's clock
        self._still: list[int] = []
        self._waited_for: dict[int, list[str]] = {}  # rank: lines of Python that it is in

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals for the ranks instead of raising; those that are ignored (`nohup`) stay so."""
        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        earlier = {number: signal.signal(number, self._note) for number in heard}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._signal:
            self._signal = self._pressing = number
            self._since = now
            self.request.post(number)
        elif number in STOPS and self._pressing in STOPS:
            self._impatient |= now - self._since > REPEAT_S
        elif number in STOPS:  # SLURM sends SIGTERM some time after SIGUSR1
            self._pressing, self._since = number, now

    def run(self) -> None:
        """Wait until all ranks have ended, and end them where they would not end by themselves.

        Raises:
            RankFailedError: a rank failed; what it had to say has been printed.
            InputError, DataError, NonFiniteError: as raised in a rank.
            Stopped: this process or a rank was told to stop.
        """
        while self.group.running:
            for end in self.group.look():
                self._end_within(self._left_after(end))
            if self._told != self._pressing:
                self._told = self._pressing
                self._end_within(self._left_after_signal(self._pressing))
            self._still = self.group.still(HEARTBEAT_S)
            if self._still or self._impatient:
                self._end_within(0)
            if self.group.clock.now >= self._deadline:
                self._ask_those_that_are_waited_for()
                self.group.kill()
            else:
                time.sleep(POLL_S)
        self._conclude()

    def _end_within(self, seconds: float) -> None:
        self._deadline = min(self._deadline, self.group.clock.now + seconds)

    def _left_after(self, end: End) -> float:
        """Seconds that other ranks have when one has ended."""
        if end.code == 0:
            return math.inf
        cause = self._cause_of(end)
        if not cause.signal:
            return LEAVE_S if cause.follows else SETTLE_S  # the one that it follows may yet be seen
        return GRACE_S if self.request.trains() else LEAVE_S  # rank 0 may still be saving

    def _left_after_signal(self, number: int) -> float:
        """Seconds that ranks have when this process was told to stop."""
        if self.request.trains():
            return GRACE_S if number in STOPS else math.inf  # who sent SIGUSR1 will send another in time
        self.group.send(signal.SIGTERM)  # raises `Stopped` in each
        return LEAVE_S

    def _cause_of(self, end: End) -> Report:
        """Why a rank ended with another code than 0: in its own words, if it had any."""
        if (report := self.reports.read(end.rank)) is not None:
            return report
        rank = f"rank {end.rank} of {self.count}"
        number = -end.code if end.code < 0 else end.code - 128
        stop = number if number in STOPS else 0
        when = end.when - SEEN_S
        if end.code < 0:
            summary = f"{rank} was killed by {_name(number)}"
            if number == signal.SIGKILL:
                summary += ", perhaps for lack of memory"
            # NCCL aborts a process whose collective has timed out, or failed because another one is gone.
            follows = number == signal.SIGABRT
            return Report(when, 128 + number, summary=summary, follows=follows, signal=stop)
        return Report(when, end.code, summary=f"{rank} ended with exit code {end.code}", signal=stop)

    def _first_cause(self) -> tuple[int, Report] | None:
        """Which rank failed first, and why; those that failed because another was gone come last."""
        ours = (-signal.SIGKILL,)
        failed = [
            (end.rank, self._cause_of(end))
            for end in self.group.ends
            if end.code and not (end.rank in self.group.killed and end.code in ours)
        ]
        return min(failed, key=lambda found: (found[1].follows, found[1].when), default=None)

    def _ask_those_that_are_waited_for(self) -> None:
        """Find out where ranks are that have kept others waiting until their collective timed out."""
        first = self._first_cause()
        if first is not None and first[1].follows and not self._signal:
            self._waited_for = {rank: self.group.where_is(rank) for rank in self.group.running.values()}

    def _conclude(self) -> None:
        if len(self.group.ends) == self.count and not any(end.code for end in self.group.ends):
            return  # done, whatever came meanwhile
        first = self._first_cause()
        if self._signal:
            if first is not None and not first[1].signal and not first[1].follows:
                print(first[1].shown or first[1].summary, file=sys.stderr)
            raise Stopped(self._signal)
        if self._still:
            raise RankFailedError(
                f"rank {self._still[0]} of {self.count} stood still for {HEARTBEAT_S:.0f} s (SIGSTOP?) and "
                "was ended with the others",
                1,
            )
        if first is None:
            return
        rank, cause = first
        if cause.signal:
            raise Stopped(cause.signal)
        if self._waited_for:
            raise RankFailedError(self._tell_of_waiting(rank, cause), cause.exit_code)
        _print_traceback(cause)
        if (kind := KINDS.get(cause.exit_code)) is not None and (lines := _lines(cause)):
            raise kind("\n".join(lines))
        summary = cause.summary if not cause.shown else f"rank {rank} of {self.count}: {cause.summary}"
        raise RankFailedError(summary, cause.exit_code)

    def _tell_of_waiting(self, waiting: int, cause: Report) -> str:
        """Print where the ranks hang that another one has waited for; return a line about it."""
        told = []
        for rank, lines in self._waited_for.items():
            print(f"rank {rank} was here, innermost first:", *lines, sep="\n  ", file=sys.stderr)
            told.append(f"rank {rank} was in {lines[0]}" if lines else f"rank {rank} gave no answer")
        return (
            f"rank {waiting} of {self.count} waited in vain for the others ({'; '.join(told)}): "
            f"{cause.summary}; trainer.timeout_min limits such waits"
        )


def _name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _print_traceback(cause: Report) -> None:
    text = [line for line in cause.shown.splitlines() if not line.startswith(TOLD)]
    if text:
        print("\n".join(text), file=sys.stderr)


def _lines(cause: Report) -> list[str]:
    return [line.removeprefix(TOLD) for line in cause.shown.splitlines() if line.startswith(TOLD)]
