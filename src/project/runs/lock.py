"""Whether a run is at work, and that only one process works in its folder.

A lock of the system holds as long as a process lives, however it ends. It is not seen from other machines
everywhere, so what a run has just written counts, too.
"""

import errno
import fcntl
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from project.errors import InputError

FRESH_S = 900.0
"""Seconds since a run on another machine has written something, within which it is taken to be at work."""

ENDING_S = 2.0
"""Seconds that a process is given which may be about to end: ranks outlive a killed parent by moments."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Be the only process, with the ranks that it forks, that works in a run's folder.

    Raises:
        InputError: another one does.
    """
    try:
        file = _open(folder / ".lock")
    except OSError:  # a folder that cannot be written to is told of elsewhere
        yield
        return
    with file:
        deadline = time.monotonic() + ENDING_S
        while not _lock(file):
            if time.monotonic() > deadline:
                raise InputError(f"{folder}: another process works in this run folder; end that first")
            time.sleep(0.05)
        yield


def _open(path: Path) -> IO[bytes]:
    """Open a file to be locked: for reading where that will do, so that its disk may be made read-only."""
    path.touch()
    file = path.open("rb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EBADF:  # NFS locks alone what is open for writing
            file.close()
            return path.open("ab")
    return file


def _lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # there are no locks on this file system
        return True
    return True


def works_elsewhere(folder: Path, status: Mapping[str, Any]) -> str:
    """Name of the other machine on which a run seems to be at work, or an empty string."""
    host = str(status.get("host", ""))
    if status.get("state") != "running" or host == platform.node():
        return ""
    files = [folder / "status.json", folder / "metrics.csv", *folder.glob("checkpoints/*.ckpt")]
    with suppress(OSError, ValueError):
        latest = max(file.stat().st_mtime for file in files if file.exists())
        return host if time.time() - latest < FRESH_S else ""
    return ""


def working_process(status: Mapping[str, Any]) -> int | None:
    """Process id of a run that goes on, on this machine; None if it has ended, or runs elsewhere.

    Args:
        status: of the run's folder.
    """
    if (
        status.get("state") != "running"
        or status.get("host") != platform.node()
        or not isinstance(status.get("pid"), int)
    ):
        return None
    pid: int = status["pid"]
    deadline = time.monotonic() + ENDING_S
    while _is_alive(pid, status.get("started", "")):
        if time.monotonic() > deadline:
            return pid
        time.sleep(0.05)
    return None


def _is_alive(pid: int, started: str) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:  # there is none, or it is another user's, and so another one
        return False
    with suppress(OSError, ValueError, IndexError):  # where there is no /proc the number has to do
        fields = Path(f"/proc/{pid}/stat").read_bytes().decode(errors="replace").rpartition(")")[2].split()
        if fields[0] in "ZX":
            return False
        began = _boot_time() + int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return began <= datetime.fromisoformat(started).timestamp() + 1  # else the number was given anew
    return True


def _boot_time() -> float:
    lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("btime")))
