"""Set-up of a process: memory allocator, streams, warnings, what it inherits, and its command's state."""

import ctypes
import gc
import os
import signal
import sys
from contextlib import suppress
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from project.runtime import signals

if TYPE_CHECKING:
    from pathlib import Path

RANK_VARIABLES = (
    *("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "ROLE_RANK"),
    *("MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"),
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_ID", "SLURM_NTASKS"),
    *("SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE"),
)
"""Variables by which Lightning and torch take a process for one of several ranks."""
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of <malloc.h>
MAX_MMAP_THRESHOLD = 32 * 2**20
"""The largest that glibc takes on 64 bits."""
PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of <sys/prctl.h>."""


def begin_command() -> None:
    """Prepare a script's process, before its imports: exit on signals, and import without garbage collection.

    `lazy_imports.freeze_gc` switches the collector on again.
    """
    gc.disable()
    signals.exit_on_signal()


def clear_rank_variables() -> None:
    """Remove the environment variables that make this process a rank."""
    for name in [*RANK_VARIABLES, *(name for name in os.environ if name.startswith("TORCHELASTIC_"))]:
        os.environ.pop(name, None)


def die_with_parent(parent: int) -> None:
    """Have Linux kill this process when its parent ends.

    Take the process id of the parent before this process begins.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call
            os._exit(128 + signal.SIGKILL)


def escape_unencodable() -> None:
    """Escape characters that the encoding of a standard stream lacks: ASCII has no é."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush_streams() -> None:
    """Write buffered text, which would be written twice after a fork, or never after `os._exit`."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: it was closed before the start
        with suppress(OSError):  # of a disk that is full, or a pipe that nobody reads
            stream.flush()


def keep_freed_memory() -> bool:
    """Have glibc keep freed memory for the next step; return true if that worked.

    A step frees its activations and gradients, and the next one allocates as many: pages that were returned
    are cleared and mapped anew, a sixth of a small CNN's training time on a CPU core. Blocks above
    `MAX_MMAP_THRESHOLD` are still returned. Another allocator (`LD_PRELOAD`) or settings in the environment
    (`MALLOC_…`, `GLIBC_TUNABLES`) are left as they are.
    """
    if any(name in ("LD_PRELOAD", "GLIBC_TUNABLES") or name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    return bool(mallopt(MMAP_THRESHOLD, MAX_MMAP_THRESHOLD) and mallopt(TRIM_THRESHOLD, 2**31 - 1))


def silence_libraries() -> None:
    """Hide Lightning's messages of every start, and tracebacks of logging itself."""
    import logging  # not before signals are handled
    import warnings

    logging.raiseExceptions = False  # a full disk would print a traceback for each line
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*is smaller than the logging interval.*",
        ".*LeafSpec.*",  # Lightning's own use of torch
        ".*across ranks is zero.*",  # there may be no validation images
        ".*your dataloader is not resumable.*",  # the data module keeps its place
        ".*`srun` command is available.*",  # a job of a sweep starts its ranks itself
        ".*requested to overfit.*",  # the order is that of the first epoch then
        ".*callbacks used to create the checkpoint.*",  # resumed runs show what changed themselves
        ".*sync_dist=True.*",  # our metrics are summed over the ranks before they are logged
    ):
        warnings.filterwarnings("ignore", message)


class CommandState:
    """State of the command that Hydra does not pass on.

    Attributes:
        shows_traceback: print the traceback of an error, too.
        resumed_run: a `project.config.resume.ResumedRun`, or None for a new run.
        resumed_sweep: a `project.config.resume.ResumedSweep`, or None for a new sweep.
        folder: folder in which the command was started, if `hydra.job.chdir` left that folder; else None.
        created_folders: run and sweep folders that this process made; for each, the parents made for it, the
            nearest first.
    """

    def __init__(self) -> None:
        self.shows_traceback = False
        self.resumed_run: Any = None
        self.resumed_sweep: Any = None
        self.folder: Path | None = None
        self.created_folders: dict[Path, list[Path]] = {}


command_state = CommandState()
