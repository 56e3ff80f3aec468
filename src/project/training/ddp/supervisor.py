"""Supervisor of the ranks: terminates them together and reports the first error."""

import math
import signal
import sys
import time
from types import FrameType

from project.errors import DataError, InputError, NonFiniteError
from project.runtime.signals import REPEAT_S, Stopped, StopRequest
from project.training.ddp.rank_processes import RankExit, RankGroup, RankReport, SharedStatus

POLL_S = 0.02
MAX_STOPPED_S = 10.0
"""Maximum time that a rank may be stopped (SIGSTOP) before all ranks are terminated, s."""

FAILURE_GRACE_S = 1.0
"""Time for other ranks to exit after a failure, s. The first failure may be detected last."""

SAVE_GRACE_S = 30.0
"""Time to finish a step and save after a stop signal, s; equal to that of torchrun and SLURM."""

EXIT_GRACE_S = 5.0
"""Time to exit after a stop signal if there is nothing to save, s."""

EXIT_DELAY_S = 5 * POLL_S
"""Maximum delay between the exit of a process and its detection, s."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ERROR_PREFIX = "error: "
ERRORS_BY_CODE = {kind.exit_code: kind for kind in (InputError, DataError, NonFiniteError)}


class RankFailedError(RuntimeError):
    """Error that a rank failed."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Supervisor:
    """Waits for the ranks, forwards stop signals and kills ranks that hang."""

    def __init__(self, group: RankGroup, status: SharedStatus, request: StopRequest, count: int) -> None:
        self.group = group
        self.status = status
        self.request = request
        self.count = count
        self._signal = 0  # first stop signal, which determines the outcome of the run
        self._deadline_signal = self._forwarded = 0  # last signal that sets a deadline
        self._signal_time = -math.inf
        self._is_repeated = False
        self._deadline = math.inf  # on the group's clock
        self._stopped: list[int] = []
        self._stacks: dict[int, list[str]] = {}  # of ranks for which other ranks waited

    def handle_signal(self, number: int, frame: FrameType | None) -> None:
        """Forward a signal to the ranks."""
        now = time.monotonic()
        if not self._signal:
            self._signal = self._deadline_signal = number
            self._signal_time = now
            self.request.post(number)
        elif number in STOP_SIGNALS and self._deadline_signal in STOP_SIGNALS:
            self._is_repeated |= now - self._signal_time > REPEAT_S
        elif number in STOP_SIGNALS:  # SLURM sends SIGTERM some time after SIGUSR1
            self._deadline_signal, self._signal_time = number, now

    def run(self) -> None:
        """Wait until all ranks have exited, and kill those that miss their deadline.

        Raises:
            RankFailedError: a rank failed. Its output has been printed.
            InputError, DataError, NonFiniteError: raised in a rank.
            Stopped: this process or a rank received a stop signal.
        """
        while self.group.running:
            for ended in self.group.poll():
                self._shorten_deadline(self._grace_after_exit(ended))
            if self._forwarded != self._deadline_signal:
                self._forwarded = self._deadline_signal
                self._shorten_deadline(self._grace_after_signal(self._deadline_signal))
            self._stopped = self.group.stopped_ranks(MAX_STOPPED_S)
            if self._stopped or self._is_repeated:
                self._shorten_deadline(0)
            if self.group.clock.now >= self._deadline:
                self._collect_stacks()
                self.group.kill()
            else:
                time.sleep(POLL_S)
        self._raise_outcome()

    def _shorten_deadline(self, seconds: float) -> None:
        self._deadline = min(self._deadline, self.group.clock.now + seconds)

    def _grace_after_exit(self, ended: RankExit) -> float:
        """Return the time for the other ranks to exit after the exit of a rank, s."""
        if ended.code == 0:
            return math.inf
        cause = self._cause_of(ended)
        if not cause.signal:
            return EXIT_GRACE_S if cause.is_connection_error else FAILURE_GRACE_S
        return SAVE_GRACE_S if self.request.is_training() else EXIT_GRACE_S  # rank 0 may still be saving

    def _grace_after_signal(self, number: int) -> float:
        """Return the time for the ranks to exit after a stop signal to this process, s."""
        if self.request.is_training():
            return SAVE_GRACE_S if number in STOP_SIGNALS else math.inf  # SIGUSR1 only warns of a time limit
        self.group.send(signal.SIGTERM)  # raises `Stopped` in each
        return EXIT_GRACE_S

    def _cause_of(self, ended: RankExit) -> RankReport:
        """Return the report of a failed rank; without a report, one derived from the exit code."""
        if (report := self.status.read(ended.rank)) is not None:
            return report
        rank = f"rank {ended.rank} of {self.count}"
        number = -ended.code if ended.code < 0 else ended.code - 128
        stop = number if number in STOP_SIGNALS else 0
        when = ended.when - EXIT_DELAY_S
        if ended.code < 0:
            summary = f"{rank} was killed by {_name(number)}"
            if number == signal.SIGKILL:
                summary += ", perhaps for lack of memory"
            # NCCL aborts a process whose collective timed out, or failed because another rank exited.
            lost = number == signal.SIGABRT
            return RankReport(when, 128 + number, summary=summary, is_connection_error=lost, signal=stop)
        return RankReport(when, ended.code, summary=f"{rank} ended with exit code {ended.code}", signal=stop)

    def _first_failure(self) -> tuple[int, RankReport] | None:
        """Return the first failed rank and its report; connection errors come last."""
        failed = [
            (ended.rank, self._cause_of(ended))
            for ended in self.group.exits
            if ended.code and not (ended.rank in self.group.killed and ended.code == -signal.SIGKILL)
        ]
        return min(failed, key=lambda found: (found[1].is_connection_error, found[1].when), default=None)

    def _collect_stacks(self) -> None:
        """Collect the stacks of running ranks if a collective of another rank timed out."""
        first = self._first_failure()
        if first is not None and first[1].is_connection_error and not self._signal:
            self._stacks = {rank: self.group.stack_of(rank) for rank in self.group.running.values()}

    def _raise_outcome(self) -> None:
        if len(self.group.exits) == self.count and not any(ended.code for ended in self.group.exits):
            return  # all ranks finished before a signal could stop them
        first = self._first_failure()
        if self._signal:
            if first is not None and not first[1].signal and not first[1].is_connection_error:
                print(first[1].output or first[1].summary, file=sys.stderr)
            raise Stopped(self._signal)
        if self._stopped:
            raise RankFailedError(
                f"rank {self._stopped[0]} of {self.count} was stopped for {MAX_STOPPED_S:.0f} s (SIGSTOP?); "
                "all ranks were terminated",
                1,
            )
        if first is None:
            return
        rank, cause = first
        if cause.signal:
            raise Stopped(cause.signal)
        if self._stacks:
            raise RankFailedError(self._describe_timeout(rank, cause), cause.exit_code)
        lines = cause.output.splitlines()
        if trace := [line for line in lines if not line.startswith(ERROR_PREFIX)]:
            print("\n".join(trace), file=sys.stderr)
        errors = [line.removeprefix(ERROR_PREFIX) for line in lines if line.startswith(ERROR_PREFIX)]
        if errors and (kind := ERRORS_BY_CODE.get(cause.exit_code)) is not None:
            raise kind("\n".join(errors))
        summary = cause.summary if not cause.output else f"rank {rank} of {self.count}: {cause.summary}"
        raise RankFailedError(summary, cause.exit_code)

    def _describe_timeout(self, waiting: int, cause: RankReport) -> str:
        """Print the stacks of the ranks that did not reach a collective; return a summary."""
        places = []
        for rank, lines in self._stacks.items():
            print(f"stack of rank {rank}, innermost call first:", *lines, sep="\n  ", file=sys.stderr)
            places.append(f"rank {rank} was in {lines[0]}" if lines else f"rank {rank} did not respond")
        return (
            f"rank {waiting} of {self.count} timed out waiting for the others ({'; '.join(places)}): "
            f"{cause.summary}; trainer.timeout_min limits such waits"
        )


def _name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
