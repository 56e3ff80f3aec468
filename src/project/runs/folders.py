"""Run folders: made under a free name, locked by one process at a time, removed where nothing came of them.

A lock of the system lasts as long as its process, however that ends. Some network file systems hide it from
other machines, so recent writes count, too.
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
"""Times that other runs may remove a folder's parent before the folder counts as impossible to make."""
FRESH_S = 900.0
"""Seconds after its last write for which a run on another machine counts as running."""
ENDING_S = 2.0
"""Seconds that a process which is about to end is given: ranks outlive a killed parent by moments."""


def created_folders() -> Iterable[Path]:
    """Return the folders that this process made and did not discard."""
    return tuple(command_state.created_folders)


def discard(path: Path) -> None:
    """Remove a folder that this process made, and the folders made for it that hold nothing else."""
    if (above := command_state.created_folders.pop(path.absolute(), None)) is not None:
        shutil.rmtree(path, ignore_errors=True)
        remove_empty(above)  # others may use them by now


def _names(wanted: Path) -> Iterable[Path]:
    return chain([wanted], (wanted.with_name(f"{wanted.name}-{number}") for number in count(2)))


def next_free_path(wanted: Path) -> Path:
    """Return the folder that `create_folder` would make now."""
    if wanted.name in ("", ".."):  # which it refuses
        return wanted
    return next(path for path in _names(wanted) if not os.path.lexists(path))


def create_folder(wanted: str | Path, key: str = "paths.outputs") -> Path:
    """Make a new folder of this name, with -2, -3, … appended where the name is taken.

    Making a folder is atomic, on network file systems, too: two runs that start at once get two folders.

    Args:
        wanted: path of the folder.
        key: key of the configuration by which the user chose it.

    Raises:
        InputError: the name is none for a new folder, or it cannot be made or written to; nothing is left.
    """
    wanted = Path(wanted)
    if URL.match(str(wanted)):
        raise InputError(f"{key}: {wanted} is an address; runs are written to disks alone, give a folder")
    if wanted.name in ("", ".."):
        raise InputError(
            f"{wanted}: no folder of a run's own; give hydra.run.dir (or hydra.sweep.dir) a new name, as in "
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
        except FileNotFoundError:  # another run has just removed a parent, or a file system such as /proc
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
    """Hold the lock of a folder for this process and those that it forks; refuse a locked one.

    Args:
        folder: folder of a run or sweep.
        busy: message for a locked folder (that of a run).
        timeout_s: time to wait for the end of the last owner [s] (`ENDING_S`).
    """
    try:
        file = _open(folder / ".lock")
    except OSError:  # a read-only folder is reported elsewhere
        yield
        return
    with file:
        deadline = time.monotonic() + (ENDING_S if timeout_s is None else timeout_s)
        while not _lock(file):
            if time.monotonic() > deadline:
                raise InputError(
                    busy or f"{folder}: another process works in this run folder; end that first"
                )
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
    """Return the process id of a run that is running on this machine; None without one."""
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
