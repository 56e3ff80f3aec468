"""What every process that this one starts has to do first."""

import ctypes
import os
import signal
import sys
from contextlib import suppress
from io import TextIOWrapper

RANK_VARIABLES = (
    *("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "ROLE_RANK"),
    *("MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"),
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_ID", "SLURM_NTASKS"),
    *("SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE"),
)
"""By which Lightning and torch take a process for one of several ranks."""


def forget_ranks() -> None:
    """Remove what says that this process is a rank of something."""
    for name in [*RANK_VARIABLES, *(name for name in os.environ if name.startswith("TORCHELASTIC_"))]:
        os.environ.pop(name, None)


def die_with_parent(parent: int) -> None:
    """Have Linux end this process when its parent ends, however that happens.

    Args:
        parent: process id of the parent, taken before this process began.
    """
    parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call
            os._exit(128 + signal.SIGKILL)


def accept_all_text() -> None:
    """Have what a stream's encoding lacks spelt out, instead of ending the process: ASCII has no é."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush() -> None:
    """Write out what would otherwise be written twice after a fork, or never after `os._exit`."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: it was closed before the start
        with suppress(OSError):  # of a disk that is full, or a pipe that nobody reads
            stream.flush()
