"""Setup of a process: memory allocator, streams, warnings, environment, and the state of its command."""

import ctypes
import gc
import os
import re
import signal
import sys
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from project.runtime import signals

SCRIPT = re.compile(r"python scripts/(\w+)\.py")
"""Command of a checkout."""
RANK_VARIABLES = (
    *("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "ROLE_RANK"),
    "GROUP_WORLD_SIZE",
    *("MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"),
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_ID", "SLURM_NTASKS"),
    *("SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE"),
)
"""Environment variables that make Lightning and torch treat a process as one of several ranks."""
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of <malloc.h>
MAX_MMAP_THRESHOLD = 32 * 2**20
"""Largest threshold of glibc on 64-bit machines [bytes]."""
PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of <sys/prctl.h>."""


def begin_command() -> None:
    """Prepare the process of a script before its imports: exit on signals, pause garbage collection.

    `lazy_imports.freeze_gc` switches the collector on again. On a terminal, a line tells that the command has
    started; the next line overwrites it, as it ends with a carriage return.
    """
    gc.disable()
    signals.exit_on_signal()
    if sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with suppress(OSError):
            sys.stderr.write("loading …\r")
            sys.stderr.flush()


def as_called(text: str) -> str:
    """Return text with commands, written as `python scripts/NAME.py`, in the form that the user called."""
    called = Path(sys.argv[0])
    if called.name.startswith("project-"):
        return SCRIPT.sub(r"project-\1", text)
    if called.parent.name == "project" and called.suffix == ".py":
        return SCRIPT.sub(r"python -m project \1", text)
    return text


def clear_rank_variables() -> None:
    """Remove the environment variables that make this process a rank."""
    for name in [*RANK_VARIABLES, *(name for name in os.environ if name.startswith("TORCHELASTIC_"))]:
        os.environ.pop(name, None)


def die_with_parent(parent: int) -> None:
    """Have Linux kill this process when its parent ends.

    Args:
        parent: process id of the parent, read before the fork.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before the call
            os._exit(128 + signal.SIGKILL)


def escape_unencodable() -> None:
    """Escape characters that the encoding of a standard stream lacks, such as é in ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush_streams() -> OSError | None:
    """Write buffered text, which a fork would write twice and `os._exit` would drop.

    Returns:
        The error if standard output loses text: a full disk, or a pipe without a reader.
    """
    lost = None
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None if closed before the start
        try:
            stream.flush()
        except OSError as error:
            lost = error if stream is sys.stdout else lost
    return lost


def keep_freed_memory() -> bool:
    """Have glibc keep freed memory for the next step; return true if glibc accepts.

    Each step frees its activations and gradients, and the next step allocates the same amount. Without this,
    glibc returns the pages to the system, which clears and maps them again: a sixth of a small CNN's training
    time on a CPU core. Blocks above `MAX_MMAP_THRESHOLD` are still returned. Another allocator (`LD_PRELOAD`)
    and settings in the environment (`MALLOC_…`, `GLIBC_TUNABLES`) are respected.
    """
    if any(name in ("LD_PRELOAD", "GLIBC_TUNABLES") or name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    return bool(mallopt(MMAP_THRESHOLD, MAX_MMAP_THRESHOLD) and mallopt(TRIM_THRESHOLD, 2**31 - 1))


def silence_libraries() -> None:
    """Hide Lightning's start-up messages and the tracebacks of Python's logging."""
    import logging  # after `exit_on_signal`
    import warnings

    logging.raiseExceptions = False  # a full disk would print a traceback for each line
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*is smaller than the logging interval.*",
        ".*LeafSpec.*",  # Lightning's own use of torch
        ".*across ranks is zero.*",  # the data may have no validation images
        ".*your dataloader is not resumable.*",  # the data module stores its position
        ".*`srun` command is available.*",  # a sweep job starts its own ranks
        ".*requested to overfit.*",  # every epoch then has the order of the first
        ".*callbacks used to create the checkpoint.*",  # a resumed run prints its changes
        ".*sync_dist=True.*",  # metrics are summed over the ranks before logging
    ):
        warnings.filterwarnings("ignore", message)


class CommandState:
    """State of the command that Hydra does not pass on.

    Attributes:
        shows_traceback: also print the traceback of an error.
        resumed_run: a `project.config.resume.ResumedRun`, or None for a new run.
        resumed_sweep: a `project.config.resume.ResumedSweep`, or None for a new sweep.
        folder: folder in which the command was started, if `hydra.job.chdir` left it; otherwise None.
        lost_output: error by which log lines for standard output were lost, or None.
        created_folders: run and sweep folders that this process made; for each, the parents made for it, the
            nearest first.
    """

    def __init__(self) -> None:
        self.shows_traceback = False
        self.resumed_run: Any = None
        self.resumed_sweep: Any = None
        self.folder: Path | None = None
        self.lost_output: OSError | None = None
        self.created_folders: dict[Path, list[Path]] = {}


command_state = CommandState()
