"""Locks of run folders: one process at a time works in each.

A lock of the system lasts as long as its process, however that ends. Some network file systems hide it from
other machines, so recent writes count, too.
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
"""Seconds after its last write for which a run on another machine counts as running."""
ENDING_S = 2.0
"""Seconds that a process which is about to end is given: ranks outlive a killed parent by moments."""


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, for this process and the ranks that it forks.

    Raises:
        InputError: another process holds it.
    """
    try:
        file = _open(folder / ".lock")
    except OSError:  # a read-only folder is reported elsewhere
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
    """Open a file to be locked: for reading where possible, so that its disk may be made read-only."""
    path.touch()
    file = path.open("rb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EBADF:  # NFS locks only what is open for writing
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


def running_host(folder: Path, status: Mapping[str, Any]) -> str:
    """Return the other machine on which a run seems to be running; an empty string without one."""
    host = str(status.get("host", ""))
    if status.get("state") != "running" or host == platform.node():
        return ""
    files = [folder / "status.json", folder / "metrics.csv", *folder.glob("checkpoints/*.ckpt")]
    with suppress(OSError, ValueError):
        latest = max(file.stat().st_mtime for file in files if file.exists())
        return host if time.time() - latest < FRESH_S else ""
    return ""


def running_process(status: Mapping[str, Any]) -> int | None:
    """Return the process id of a run that is running on this machine; None without one.

    Args:
        status: status of the run.
    """
    pid = status.get("pid")
    local = status.get("state") == "running" and status.get("host") == platform.node()
    if not local or not isinstance(pid, int):
        return None
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
    with suppress(OSError, ValueError, IndexError):  # without /proc the number has to do
        fields = Path(f"/proc/{pid}/stat").read_bytes().decode(errors="replace").rpartition(")")[2].split()
        if fields[0] in "ZX":
            return False
        lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
        boot_time = float(next(line.split()[1] for line in lines if line.startswith("btime")))
        began = boot_time + int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return began <= datetime.fromisoformat(started).timestamp() + 1  # else the number is in use again
    return True
