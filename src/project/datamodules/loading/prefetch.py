"""Background work of data loading: prefetching in threads, and the worker processes of `DataLoader`."""

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
"""Beginning of torch's messages on workers that died or hang."""


def prefetch(
    function: Callable[[In], Out], items: Iterable[In], depth: int = 2, threads: int = 1
) -> Iterator[Out]:
    """Yield `function(item)` for each item, in order; threads compute up to `depth` results in advance.

    An exception of `function` is raised in place of its result. The threads end with the iterator.
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
    """A decoding process that died or hangs. The message names the remedy."""

    exit_code = 1


def worker_setup() -> Callable[[int], None]:
    """Return the `worker_init_fn` of a `DataLoader`: its workers ignore signals and end with this process."""
    _kill_workers_at_exit()
    parent = os.getpid() if multiprocessing.get_start_method() == "fork" else None
    return partial(_set_up_worker, parent)


def _set_up_worker(parent: int | None, worker: int) -> None:
    # A signal to the process group is meant for the training process, which finishes its step and saves.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if parent is not None:  # else the parent may be a fork server
        die_with_parent(parent)


@cache
def _kill_workers_at_exit() -> None:
    atexit.register(_kill_workers, os.getpid())


def _kill_workers(owner: int) -> None:
    """Kill workers before multiprocessing waits for them: a stopped process never ends."""
    if os.getpid() == owner:
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()


@contextmanager
def explain_worker_failures() -> Iterator[None]:
    """Turn torch's errors about workers into one line; torch raises them from a signal handler, anywhere."""
    try:
        yield
    except RuntimeError as error:
        if not WORKER_FAILURE.match(text := " ".join(str(error).split())):
            raise
        if "timed out" in text:
            problem = (
                "data.timeout_s: the processes that decode images gave no batch in that time; see whether "
                "the disk of data.path answers, or raise data.timeout_s"
            )
        else:
            problem = (
                "data.num_workers: a process that decodes images ended, perhaps for lack of memory; take "
                "fewer workers, smaller images (data.resize) or data.num_workers=0"
            )
        raise WorkerError(f"{problem} ({summarize(error).rstrip('. ')})") from error
