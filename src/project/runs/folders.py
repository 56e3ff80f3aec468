"""Creation of run folders under a free name, their locks, and their removal if they stay empty.

A system lock ends with its process, however the process ends. Some network file systems do not share locks
between machines. A run on another machine therefore counts as running while its files are recent.
"""

import errno
import fcntl
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import IO, Any

from project.errors import InputError
from project.runtime.atomic_files import URL, reason_of
from project.runtime.output_files import probe, remove_empty
from project.runtime.process import command_state

MAX_ATTEMPTS = 100
"""Attempts to make a folder while other runs remove its parents."""
FRESH_S = 900.0
"""Time after its last write for which a run on another machine counts as running [s]."""
ENDING_S = 2.0
"""Time to wait for an ending process [s]: ranks briefly outlive a killed parent."""


def created_folders() -> Iterable[Path]:
    """Return the folders that this process made and has not discarded."""
    return tuple(command_state.created_folders)


def discard(path: Path) -> None:
    """Remove a folder that this process made, and the parents made for it if they are empty."""
    if (above := command_state.created_folders.pop(path.absolute(), None)) is not None:
        shutil.rmtree(path, ignore_errors=True)
        remove_empty(above)  # other runs may use them meanwhile


def _names(wanted: Path) -> Iterable[Path]:
    return chain([wanted], (wanted.with_name(f"{wanted.name}-{number}") for number in count(2)))


def next_free_path(wanted: Path) -> Path:
    """Return the path that `create_folder` would make now."""
    if wanted.name in ("", ".."):  # refused by `create_folder`
        return wanted
    return next(path for path in _names(wanted) if not os.path.lexists(path))


def create_folder(wanted: str | Path, key: str = "paths.outputs") -> Path:
    """Make a new folder, with -2, -3, … appended if the name is taken.

    Making a folder is atomic, also on network file systems: runs that start simultaneously get two folders.

    Args:
        wanted: path of the folder.
        key: configuration key of the path, for messages [paths.outputs].

    Raises:
        InputError: no valid name, or the folder cannot be made or written to. Nothing is left behind.
    """
    wanted = Path(wanted)
    if URL.match(str(wanted)):
        raise InputError(
            f"{key}: {wanted} is a URL, but runs are written to local folders only; give a folder"
        )
    if wanted.name in ("", ".."):
        raise InputError(
            f"{wanted}: not a new folder; give hydra.run.dir (or hydra.sweep.dir) a new name, as in "
            "hydra.run.dir=outputs/trial"
        )
    above = [parent for parent in wanted.absolute().parents if not os.path.lexists(parent)]
    try:
        path = _make_new(wanted)
    except OSError as error:
        remove_empty(above)
        raise InputError(
            f"{key}: cannot make the run folder {wanted} ({reason_of(error)}); set {key} to "
            "a folder that you may write to, on a disk that is not full"
        ) from error
    command_state.created_folders[path.absolute()] = above
    return path


def _make_new(wanted: Path) -> Path:
    for attempt in count(1):
        wanted.parent.mkdir(parents=True, exist_ok=True)
        try:
            path = next(path for path in _names(wanted) if _make(path))
            break
        except FileNotFoundError:  # another run removed a parent, or the file system is one like /proc
            if attempt == MAX_ATTEMPTS:
                raise
    try:
        probe(path)
    except OSError:
        remove_empty([path])
        raise
    return path


def _make(path: Path) -> bool:
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


@contextmanager
def folder_lock(folder: Path, busy: str = "", timeout_s: float | None = None) -> Iterator[None]:
    """Lock a folder for this process and its forks.

    Args:
        folder: folder of a run or sweep.
        busy: message if the folder is locked [for a run folder].
        timeout_s: time to wait for the previous owner to end [s] [`ENDING_S`].

    Raises:
        InputError: another process has the lock.
    """
    try:
        file = _open(folder / ".lock")
    except OSError:  # reported where the folder is written
        yield
        return
    with file:
        deadline = time.monotonic() + (ENDING_S if timeout_s is None else timeout_s)
        while not _lock(file):
            if time.monotonic() > deadline:
                raise InputError(busy or f"{folder}: in use by another process; end that process first")
            time.sleep(0.05)
        yield


def _open(path: Path) -> IO[bytes]:
    """Open a lock file, for reading if possible, so that the disk can be remounted read-only."""
    path.touch()
    file = path.open("rb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EBADF:  # NFS locks only files open for writing
            file.close()
            return path.open("ab")
    return file


def _lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        return True
    return True


def running_host(folder: Path, status: Mapping[str, Any]) -> str:
    """Return the host of a run that seems to be running on another machine; otherwise an empty string."""
    host = str(status.get("host", ""))
    if status.get("state") != "running" or host == platform.node():
        return ""
    files = [folder / "status.json", folder / "metrics.csv", *folder.glob("checkpoints/*.ckpt")]
    with suppress(OSError, ValueError):
        latest = max(file.stat().st_mtime for file in files if file.exists())
        return host if time.time() - latest < FRESH_S else ""
    return ""


def has_died(folder: Path, status: Mapping[str, Any]) -> bool:
    """Return True if a run says that it is running, but its process has ended without recording it.

    A run on another machine counts as dead if its files are older than `FRESH_S`. Takes no lock and does not
    wait.
    """
    if status.get("state") != "running":
        return False
    if status.get("host") == platform.node():
        pid = status.get("pid")
        return isinstance(pid, int) and not _is_alive(pid, status.get("started", ""))
    return not running_host(folder, status)


def is_locked(folder: Path) -> bool | None:
    """Return True if a process of this machine has the lock of a run or sweep; None if that is unknown.

    Reads the system's list of locks, and therefore never takes the lock itself.
    """
    try:
        found = (folder / ".lock").stat()
    except OSError:  # nobody has locked it
        return False
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    places = [line.split()[5].split(":") for line in lines if "->" not in line and len(line.split()) > 5]
    device = (os.major(found.st_dev), os.minor(found.st_dev))
    return any(int(inode) == found.st_ino and (int(a, 16), int(b, 16)) == device for a, b, inode in places)


def running_process(status: Mapping[str, Any]) -> int | None:
    """Return the process id of a run that is running on this machine; otherwise None."""
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
    except OSError:  # no such process, or another user's, so not the run's
        return False
    with suppress(OSError, ValueError, IndexError):  # without /proc, trust the process id
        fields = Path(f"/proc/{pid}/stat").read_bytes().decode(errors="replace").rpartition(")")[2].split()
        if fields[0] in "ZX":
            return False
        lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
        boot_time = float(next(line.split()[1] for line in lines if line.startswith("btime")))
        began = boot_time + int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return began <= datetime.fromisoformat(started).timestamp() + 1  # otherwise the id is reused
    return True
