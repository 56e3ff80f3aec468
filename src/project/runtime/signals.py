"""Being told to stop: SIGTERM, Ctrl-C (SIGINT), SIGUSR1, by which clusters warn, SIGHUP of a closed terminal.

While it trains, a process only notes a signal. The training loop looks at the note between two steps, where
all ranks agree on it, saves, and then raises `Stopped`. At any other time `Stopped` is raised on the spot.

Before that, while a run is composed and libraries are imported, there is nothing to save, and what is raised
on the spot often comes to nothing: import hooks, finalizers and `except:` clauses swallow it or make another
error of it. There the process ends at once, within the signal's handler.

Needs no torch.
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
"""Seconds within which signals count as one: `timeout`, `uv run` and others send a signal to a process and to
its group."""


def exit_code(signum: int) -> int:
    """Exit code of a process that a signal stopped."""
    return REQUEUE if signum == signal.SIGUSR1 else 128 + signum


class Stopped(SystemExit):
    """Raised where a run stops because it was told to; the process ends with this exit code.

    Args:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(exit_code(signum))
        self.signum = signum
        self.told = False

    def __str__(self) -> str:
        return f"told to stop by {signal.Signals(self.signum).name}"


class Request:
    """Bytes that a process and its ranks share: which signal it was sent, and which of them look for it.

    Args:
        count: of ranks; they are forked afterwards.
    """

    def __init__(self, count: int) -> None:
        self._bytes = mmap.mmap(-1, 1 + count)

    def post(self, signum: int) -> None:
        """Have all ranks that train stop at their next step."""
        self._bytes[0] = signum

    def read(self) -> int:
        """The signal posted, 0: none."""
        return self._bytes[0]

    def note(self, rank: int, *, trains: bool) -> None:
        """Note whether a rank looks for signals between its steps."""
        self._bytes[1 + rank] = trains

    def trains(self) -> bool:
        """Whether some rank looks for signals between its steps."""
        return any(self._bytes[1:])


class _State:
    """What this process was told."""

    def __init__(self) -> None:
        self.signum = 0
        self.times = 0
        self.heard = -math.inf
        self.deferring = False
        self.listening = False
        self.raises = 0  # times that it was raised on the spot
        self.shared: Request | None = None
        self.rank = 0


_state = _State()


def obey(request: Request, rank: int) -> None:
    """In a rank: stop for what its parent posts too."""
    _state.shared, _state.rank = request, rank


class _Start:
    """How a process ends that is told to stop before it trains."""

    def __init__(self) -> None:
        self.pid = 0
        self.earlier: dict[int, Any] = {}
        self.tidy_up: Callable[[int], object] = lambda _: None
        self.holding = False
        self.held = 0
        self.ending = False


_start = _Start()


def end_at_once(tidy_up: Callable[[int], object] | None = None) -> None:
    """From now on end the process at once when it is told to stop, until `listening`.

    Signals that are ignored, as under `nohup`, stay so. May be called again.

    Args:
        tidy_up: called first, with the signal.
    """
    if tidy_up is not None:
        _start.tidy_up = tidy_up
    if _start.pid == os.getpid() and _start.earlier:
        return
    _start.pid = os.getpid()
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    _start.earlier = {number: signal.signal(number, _end) for number in heard}


@contextmanager
def holding() -> Iterator[None]:
    """Put the end off until the code within is done: what is made half is not tidied up."""
    _start.holding = True
    try:
        yield
    finally:
        _start.holding = False
        if number := _start.held:
            _start.held = 0
            _end(number, None)


def _end(signum: int, frame: object) -> None:
    if os.getpid() != _start.pid:  # a process forked meanwhile, which has nothing to tidy up
        os._exit(exit_code(signum))
    if _start.holding:
        _start.held = _start.held or signum
        return
    if _start.ending or (_state.signum and signum != signal.SIGINT):  # it ends already, for the first signal
        return
    _start.ending = True
    with suppress(Exception):  # whatever was interrupted
        sys.stdout.flush()
    if os.environ.get("RANK", "0") == "0":
        line = "interrupted" if signum == signal.SIGINT else str(Stopped(signum))
        with suppress(OSError):
            os.write(2, f"{line}\n".encode())
    with suppress(Exception):
        _start.tidy_up(signum)
    os._exit(exit_code(signum))


def requested() -> int:
    """The signal by which this process, or its group, was told to stop; 0: none."""
    if not _state.signum and _state.shared is not None and (posted := _state.shared.read()):
        _note(posted)
    return _state.signum


@contextmanager
def listening() -> Iterator[None]:
    """Turn the signals into `Stopped`, at once or, within `deferring`, at the next step.

    Those that are ignored, as under `nohup`, stay so.

    Raises:
        Stopped: also in the place of what a library has made of it.
    """
    if _state.listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.signum = _state.times = 0
    _state.heard = -math.inf
    _state.raises = 0
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    earlier = {number: signal.signal(number, _hear) for number in heard}
    _state.listening = True
    try:
        yield
    except Exception as error:
        if _state.raises:
            raise Stopped(_state.signum) from error
        raise
    finally:
        _state.listening = False
        for number, handler in earlier.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def deferring() -> Iterator[None]:
    """Leave it to the code within to look at `requested` and to raise `Stopped` at a good moment.

    Raises:
        Stopped: as it ends, if the code within had no such moment any more; as it begins, if a library has
            swallowed one.
    """
    if _state.raises:
        raise Stopped(_state.signum)
    before = _state.deferring
    _defer(True)
    try:
        yield
    finally:
        _defer(before)
    if signum := requested():
        raise Stopped(signum)


@contextmanager
def surfacing() -> Iterator[None]:
    """Raise `Stopped` as the code within ends, if it was raised there and a library has swallowed it.

    Raises:
        Stopped: also in the place of what a library has made of it.
    """
    before = _state.raises
    try:
        yield
    except Exception as error:
        if _state.raises > before:
            raise Stopped(_state.signum) from error
        raise
    if _state.raises > before:
        raise Stopped(_state.signum)


def _defer(defers: bool) -> None:
    _state.deferring = defers
    if _state.shared is not None:
        _state.shared.note(_state.rank, trains=defers)


def _hear(signum: int, frame: object) -> None:
    earlier, _state.heard = _state.heard, time.monotonic()
    if _state.heard - earlier < REPEAT_S:
        return
    _state.times += 1
    if _state.times > 2:  # something swallows what is raised
        os._exit(128 + signum)
    impatient = _state.times == 2 and signum == signal.SIGINT
    if not impatient and _state.times == 2:
        return  # clusters repeat themselves
    _note(signum)
    if impatient or not _state.deferring:
        _state.raises += 1
        raise Stopped(signum)
    if signum == signal.SIGINT and _state.shared is None and sys.stderr.isatty():
        os.write(2, b"\nsaving after this step; Ctrl-C again ends at once\n")


def _note(signum: int) -> None:
    _state.signum = _state.signum or signum
