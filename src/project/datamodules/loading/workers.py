"""Worker processes of a data loader: they end with the run, and the run ends when they do not answer."""

import atexit
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial

from project.errors import summarize
from project.runtime.signals import SIGNALS
from project.runtime.streams import die_with_parent

FAILURE = re.compile(r"DataLoader (worker|timed out)|Pin memory thread exited")
"""How torch's messages of workers that died or hang begin."""


class WorkerError(RuntimeError):
    """A process that decodes images died or hangs. The message names the remedy."""

    exit_code = 1


def worker_setup() -> Callable[[int], None]:
    """What each worker is to run first, as `DataLoader` takes it in `worker_init_fn`."""
    _end_workers_at_exit()
    parent = os.getpid() if multiprocessing.get_start_method() == "fork" else None
    return partial(_set_up, parent)


def _set_up(parent: int | None, worker: int) -> None:
    # A signal to a whole process group is for the process that trains: it finishes its step, and saves.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if parent is not None:  # else the parent may be a server of processes
        die_with_parent(parent)


@cache
def _end_workers_at_exit() -> None:
    """Have workers killed before multiprocessing, at exit too, waits for them: a stopped one never ends."""
    atexit.register(_kill_workers, os.getpid())


def _kill_workers(owner: int) -> None:
    if os.getpid() == owner:
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()


@contextmanager
def naming_worker_failures() -> Iterator[None]:
    """Say in one line what torch tells of a worker, wherever it does: a signal tells of its death.

    Raises:
        WorkerError: one died, or did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        if not FAILURE.match(text := " ".join(str(error).split())):
            raise
        if "timed out" in text:
            reason = (
                "data.timeout_s: the processes that decode images gave no batch in that time; see whether "
                "the disk of data.path answers, or raise data.timeout_s"
            )
        else:
            reason = (
                "data.num_workers: a process that decodes images ended, perhaps for lack of memory; take "
                "fewer workers, smaller images (data.resize) or data.num_workers=0"
            )
        raise WorkerError(f"{reason} ({summarize(error).rstrip('. ')})") from error
