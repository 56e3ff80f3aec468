"""Background data loading: prefetching in threads, and worker processes of `DataLoader`."""

import atexit
import multiprocessing
import os
import re
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from itertools import islice
from typing import TypeVar

from project.errors import summarize
from project.runtime.process import die_with_parent
from project.runtime.signals import SIGNALS

In = TypeVar("In")
Out = TypeVar("Out")

WORKER_FAILURE = re.compile(r"DataLoader (worker|timed out)|Pin memory thread exited")
"""Start of torch's error messages about workers that ended or hang."""


def prefetch(
    function: Callable[[In], Out], items: Iterable[In], depth: int = 2, threads: int = 1
) -> Iterator[Out]:
    """Yield `function(item)` for each item, in order; threads compute up to `depth` results in advance.

    An exception in `function` is raised when its result is due. The threads end when the iterator is closed.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="prefetch") as pool:
        pending: deque[Future[Out]] = deque(pool.submit(function, item) for item in islice(remaining, depth))
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
                yield result
        finally:
            for future in pending:
                future.cancel()


class WorkerError(RuntimeError):
    """Worker process that ended or hangs; the message suggests a fix."""

    exit_code = 1


def worker_setup() -> Callable[[int], None]:
    """Return a `worker_init_fn` for `DataLoader`: workers block signals and end with this process."""
    _kill_workers_at_exit()
    parent = os.getpid() if multiprocessing.get_start_method() == "fork" else None
    return partial(_set_up_worker, parent)


def _set_up_worker(parent: int | None, worker: int) -> None:
    # The training process handles signals to the process group: it finishes its step and saves.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if parent is not None:  # else the parent may be a fork server
        die_with_parent(parent)


@cache
def _kill_workers_at_exit() -> None:
    atexit.register(_kill_workers, os.getpid())


def _kill_workers(owner: int) -> None:
    """Kill workers before multiprocessing joins them: joining a stopped process (SIGSTOP) never returns."""
    if os.getpid() == owner:
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises an error
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()


@contextmanager
def explain_worker_failures() -> Iterator[None]:
    """Turn torch's worker errors into errors of one line with a fix.

    torch raises them from a signal handler, so any statement of the training can raise them.

    Raises:
        WorkerError: a worker ended or timed out.
    """
    try:
        yield
    except RuntimeError as error:
        if not WORKER_FAILURE.match(text := " ".join(str(error).split())):
            raise
        if "timed out" in text:
            problem = (
                "data.timeout_s: the worker processes delivered no batch in this time; check that the disk "
                "of data.path responds, or increase data.timeout_s"
            )
        else:
            problem = (
                "data.num_workers: a worker process ended, perhaps out of memory; use fewer workers, smaller "
                "images (data.resize) or data.num_workers=0"
            )
        raise WorkerError(f"{problem} ({summarize(error).rstrip('. ')})") from error
