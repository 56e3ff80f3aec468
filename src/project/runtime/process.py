"""Set-up of a process: its memory allocator, streams, and what it inherits from its parent."""

import ctypes
import gc
import os
import signal
import sys
from contextlib import suppress
from io import TextIOWrapper

from project.runtime import signals

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


def forget_ranks() -> None:
    """Remove the environment variables that make this process a rank."""
    for name in [*RANK_VARIABLES, *(name for name in os.environ if name.startswith("TORCHELASTIC_"))]:
        os.environ.pop(name, None)


def die_with_parent(parent: int) -> None:
    """Have Linux kill this process when its parent ends, however that happens.

    Args:
        parent: process id of the parent, taken before this process began.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call
            os._exit(128 + signal.SIGKILL)


def accept_all_text() -> None:
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
    """Have glibc keep freed memory for the next step, instead of returning it to the system.

    A step frees its activations and gradients, and the next one allocates as many: pages that were returned
    are cleared and mapped anew, a sixth of a small CNN's training time on a CPU core. Blocks above
    `MAX_MMAP_THRESHOLD` are returned as ever. Another allocator (`LD_PRELOAD`) or settings in the environment
    (`MALLOC_…`, `GLIBC_TUNABLES`) are left as they are.

    Returns:
        True if that was done.
    """
    if any(name in ("LD_PRELOAD", "GLIBC_TUNABLES") or name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    return bool(mallopt(MMAP_THRESHOLD, MAX_MMAP_THRESHOLD) and mallopt(TRIM_THRESHOLD, 2**31 - 1))
