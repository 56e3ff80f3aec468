"""Signals that stop a run: SIGTERM, SIGINT (Ctrl-C), SIGUSR1 (a cluster's warning), SIGHUP (terminal closed).

Before training (`exit_on_signal`) there is nothing to save, and import hooks, finalizers and `except:`
clauses swallow exceptions: the process exits within the handler. Later (`raise_on_signal`) the handler raises
`Stopped`. While it trains (`defer_signals`) the handler only notes the signal: the training loop asks for
`requested` between two steps, where all ranks agree on it, saves, and raises `Stopped`.
"""

import math
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

REQUEUE = 75
"""Exit code of a run that SIGUSR1 stopped: start it again (EX_TEMPFAIL of <sysexits.h>)."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

REPEAT_S = 0.5
"""Seconds within which signals count as one: `timeout` and `uv run` signal a process and its group."""


def exit_code(signum: int) -> int:
    """Return the exit code of a process that a signal stopped."""
    return REQUEUE if signum == signal.SIGUSR1 else 128 + signum


class Stopped(SystemExit):
    """Ends a run that a signal stopped, with the exit code of the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(exit_code(signum))
        self.signum = signum
        self.logged = False

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}"


class StopRequest:
    """Memory shared by a process and its future ranks: its signal, and the ranks that ask for signals."""

    def __init__(self, num_ranks: int) -> None:
        self._bytes = mmap.mmap(-1, 1 + num_ranks)

    def post(self, signum: int) -> None:
        """Stop all ranks that train at their next step."""
        self._bytes[0] = signum

    def read(self) -> int:
        """Return the signal posted; 0 is none."""
        return self._bytes[0]

    def set_training(self, rank: int, trains: bool) -> None:
        """Note that a rank asks for signals between its steps, or does not."""
        self._bytes[1 + rank] = trains

    def is_training(self) -> bool:
        """Return true if some rank asks for signals between its steps."""
        return any(self._bytes[1:])


class _State:
    """Signals of this process while `raise_on_signal` is active."""

    def __init__(self) -> None:
        self.active = False
        self.request: StopRequest | None = None
        self.rank = 0
        self.reset()

    def reset(self) -> None:
        self.signum = 0
        self.times = 0
        self.last_s = -math.inf
        self.num_raised = 0
        self.deferred = False


class _ExitState:
    """Signals of this process while `exit_on_signal` is active."""

    def __init__(self) -> None:
        self.pid = 0
        self.earlier: dict[int, Any] = {}
        self.clean_up: Callable[[int], object] = lambda _: None
        self.blocked = False
        self.pending = 0
        self.exiting = False


_state = _State()
_exit = _ExitState()


def follow_request(request: StopRequest, rank: int) -> None:
    """Stop this rank for signals that its parent posts, too."""
    _state.request, _state.rank = request, rank


def _set_handlers(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Handle the signals but those that are ignored, as under `nohup`; return the earlier handlers."""
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


@contextmanager
def handling_signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Handle the signals by a function within, but those that are ignored, as under `nohup`."""
    earlier = _set_handlers(handler)
    try:
        yield
    finally:
        for number, before in earlier.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)


def exit_on_signal(clean_up: Callable[[int], object] | None = None) -> None:
    """Exit at once on a signal, after `clean_up`, until `raise_on_signal`; may be called again."""
    if clean_up is not None:
        _exit.clean_up = clean_up
    if _exit.pid != os.getpid() or not _exit.earlier:
        _exit.pid = os.getpid()
        _exit.earlier = _set_handlers(_exit_now)


@contextmanager
def postpone_exit() -> Iterator[None]:
    """Postpone the exit until the code within is done: unfinished folders cannot be cleaned up."""
    _exit.blocked = True
    try:
        yield
    finally:
        _exit.blocked = False
        if number := _exit.pending:
            _exit.pending = 0
            _exit_now(number, None)


def _exit_now(signum: int, frame: object) -> None:
    if os.getpid() != _exit.pid:  # a process forked meanwhile, which has nothing to clean up
        os._exit(exit_code(signum))
    if _exit.blocked:
        _exit.pending = _exit.pending or signum
        return
    if _exit.exiting or (_state.signum and signum != signal.SIGINT):  # it exits for the first signal
        return
    _exit.exiting = True
    with suppress(Exception):  # whatever was interrupted
        sys.stdout.flush()
    if os.environ.get("RANK", "0") == "0":
        line = "interrupted" if signum == signal.SIGINT else str(Stopped(signum))
        with suppress(OSError):
            os.write(2, f"{line}\n".encode())
    with suppress(Exception):
        _exit.clean_up(signum)
    os._exit(exit_code(signum))


def requested() -> int:
    """Return the signal that stops this process or its group; 0 is none."""
    if not _state.signum and _state.request is not None:
        _state.signum = _state.request.read()
    return _state.signum


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Raise `Stopped` on a signal, at once or, within `defer_signals`, at the next step.

    `Stopped` also replaces an error that a library made of it.
    """
    if _state.active or threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.reset()
    with handling_signals(_handle):
        _state.active = True
        try:
            yield
        except Exception as error:
            if _state.num_raised:
                raise Stopped(_state.signum) from error
            raise
        finally:
            _state.active = False


@contextmanager
def defer_signals() -> Iterator[None]:
    """Leave it to the code within to ask for `requested` and to raise `Stopped` at a good moment.

    `Stopped` is raised at the end if there was no such moment, and at the beginning if a library swallowed an
    earlier one.
    """
    if _state.num_raised:
        raise Stopped(_state.signum)
    before = _state.deferred
    _set_deferred(True)
    try:
        yield
    finally:
        _set_deferred(before)
    if signum := requested():
        raise Stopped(signum)


@contextmanager
def raise_swallowed() -> Iterator[None]:
    """Raise `Stopped` again when the code within ends, if a library swallowed or replaced it there."""
    before = _state.num_raised
    try:
        yield
    except Exception as error:
        if _state.num_raised > before:
            raise Stopped(_state.signum) from error
        raise
    if _state.num_raised > before:
        raise Stopped(_state.signum)


def _set_deferred(deferred: bool) -> None:
    _state.deferred = deferred
    if _state.request is not None:
        _state.request.set_training(_state.rank, deferred)


def _handle(signum: int, frame: object) -> None:
    earlier, _state.last_s = _state.last_s, time.monotonic()
    if _state.last_s - earlier < REPEAT_S:
        return
    _state.times += 1
    if _state.times > 2:  # something swallows what is raised
        os._exit(128 + signum)
    at_once = _state.times == 2 and signum == signal.SIGINT
    if _state.times == 2 and not at_once:
        return  # clusters repeat themselves
    _state.signum = _state.signum or signum
    if at_once or not _state.deferred:
        _state.num_raised += 1
        raise Stopped(signum)
    if signum == signal.SIGINT and _state.request is None and sys.stderr.isatty():
        os.write(2, b"\nsaving after this step; Ctrl-C again ends at once\n")
