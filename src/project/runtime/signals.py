"""Signals that stop a run: SIGTERM, SIGINT (Ctrl-C), SIGUSR1 (a cluster's warning), SIGHUP (terminal closed).

Before training there is nothing to save, and import hooks, finalizers and `except:` clauses may swallow
exceptions. The process therefore exits within the handler (`exit_on_signal`). Later the handler raises
`Stopped` (`raise_on_signal`). During training it only stores the signal (`defer_signals`): between two steps
the training loop reads `requested`, agrees on it with all ranks, saves, and raises `Stopped`.
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
"""Exit code of a run that SIGUSR1 stopped and that should be started again (EX_TEMPFAIL of <sysexits.h>)."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

REPEAT_S = 0.5
"""Seconds within which signals count as one: `timeout` and `uv run` signal a process and its group."""


def exit_code(signum: int) -> int:
    """Return the exit code of a process that a signal stopped."""
    return REQUEUE if signum == signal.SIGUSR1 else 128 + signum


class Stopped(SystemExit):
    """Exit of a run that a signal stopped, with the exit code of the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(exit_code(signum))
        self.signum = signum
        self.logged = False

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}"


class StopRequest:
    """Stop signal in memory that a process shares with its future ranks, and a flag per training rank."""

    def __init__(self, num_ranks: int) -> None:
        self._bytes = mmap.mmap(-1, 1 + num_ranks)

    def post(self, signum: int) -> None:
        """Stop all training ranks at their next step."""
        self._bytes[0] = signum

    def read(self) -> int:
        """Return the posted signal; 0 without one."""
        return self._bytes[0]

    def set_training(self, rank: int, trains: bool) -> None:
        """Set the flag of a rank that reads signals between its steps."""
        self._bytes[1 + rank] = trains

    def is_training(self) -> bool:
        """Return True if a rank reads signals between its steps."""
        return any(self._bytes[1:])


class _State:
    """State of `raise_on_signal` in this process."""

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
    """State of `exit_on_signal` in this process."""

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
    """Also stop this rank for signals that its parent posts."""
    _state.request, _state.rank = request, rank


def _set_handlers(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Install a handler, except for ignored signals, as under `nohup`; return the earlier handlers."""
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


@contextmanager
def handling_signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Handle signals by a function within the block, except for ignored ones, as under `nohup`."""
    earlier = _set_handlers(handler)
    try:
        yield
    finally:
        for number, before in earlier.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)


def exit_on_signal(clean_up: Callable[[int], object] | None = None) -> None:
    """Exit on a signal at once, after calling `clean_up`, until `raise_on_signal`; safe to call again."""
    if clean_up is not None:
        _exit.clean_up = clean_up
    if _exit.pid != os.getpid() or not _exit.earlier:
        _exit.pid = os.getpid()
        _exit.earlier = _set_handlers(_exit_now)


@contextmanager
def postpone_exit() -> Iterator[None]:
    """Postpone the exit to the end of the block, as unfinished folders cannot be cleaned up."""
    _exit.blocked = True
    try:
        yield
    finally:
        _exit.blocked = False
        if number := _exit.pending:
            _exit.pending = 0
            _exit_now(number, None)


def _exit_now(signum: int, frame: object) -> None:
    if os.getpid() != _exit.pid:  # a forked process has nothing to clean up
        os._exit(exit_code(signum))
    if _exit.blocked:
        _exit.pending = _exit.pending or signum
        return
    if _exit.exiting or (_state.signum and signum != signal.SIGINT):  # the first signal is handled already
        return
    _exit.exiting = True
    with suppress(Exception):  # the interrupted code may hold a lock of the stream
        sys.stdout.flush()
    if os.environ.get("RANK", "0") == "0":
        line = "interrupted" if signum == signal.SIGINT else str(Stopped(signum))
        with suppress(OSError):
            os.write(2, f"{line}\n".encode())
    with suppress(Exception):
        _exit.clean_up(signum)
    os._exit(exit_code(signum))


def requested() -> int:
    """Return the signal that stops this process or its ranks; 0 without one."""
    if not _state.signum and _state.request is not None:
        _state.signum = _state.request.read()
    return _state.signum


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Raise `Stopped` on a signal: at once, or within `defer_signals` at the next step.

    `Stopped` also replaces an error that a library raised because of it.
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
    """Only store signals within the block, which reads `requested` and raises `Stopped` itself.

    If the block did not, `Stopped` is raised at its end. If a library swallowed an earlier `Stopped`, it is
    raised at the beginning.
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
    """Raise `Stopped` again at the end of the block if a library swallowed or replaced it."""
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
    if _state.times > 2:  # a library swallows `Stopped`
        os._exit(128 + signum)
    at_once = _state.times == 2 and signum == signal.SIGINT
    if _state.times == 2 and not at_once:
        return  # clusters repeat signals
    _state.signum = _state.signum or signum
    if at_once or not _state.deferred:
        _state.num_raised += 1
        raise Stopped(signum)
    if signum == signal.SIGINT and _state.request is None and sys.stderr.isatty():
        os.write(2, b"\nsaving after this step; Ctrl-C again ends at once\n")
