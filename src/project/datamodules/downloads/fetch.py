"""Fetching a data set once, whole and checked, however many processes want it."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from project.datamodules.downloads.archives import md5_of, move_into
from project.datamodules.downloads.checksums import digest_of
from project.errors import DataError, one_line

log = logging.getLogger(__name__)

PATIENCE_S = 1.0
"""Seconds of waiting for another process after which it is said what is waited for."""


def fetch(
    name: str,
    root: Path,
    folder: Path,
    checksums: Mapping[str, str],
    download: Callable[[str], object],
    memory: Path | None = None,
) -> None:
    """Make sure that `root / folder` holds the files of `checksums`, undamaged.

    One process downloads while the others wait; if it is killed, one of them goes on. Files arrive in a
    folder of their own on the same file system and are moved in one by one when all are there and correct.

    Args:
        name: as in `data=…`, for messages.
        root: `paths.data`.
        folder: below `root`.
        checksums: MD5 of each file, by its name in `folder`.
        download: fetches the set into the root that it is given, in the same layout.
        memory: where it is remembered which files were found undamaged (see `digest_of`).

    Raises:
        DataError: the files are missing or damaged, and could not be fetched.
    """
    if not (problem := _problem(root / folder, checksums, memory)):
        _sweep_if_free(root, name)
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root, name):
            _sweep(root, name)
            problem = _problem(root / folder, checksums, memory)
            if problem:
                log.info("downloading %s to %s", name, root)
                _download(name, root, folder, checksums, download)
    except (OSError, NotImplementedError) as error:  # the latter where there are no locks
        raise DataError(
            f"paths.data={root}: data={name} is not there ({problem}) and could not be downloaded "
            f"({one_line(error)}); put its files into {root / folder}, or train on the embedded data=digits"
        ) from error


def verify(
    name: str, root: Path, folder: Path, checksums: Mapping[str, str], memory: Path | None = None
) -> None:
    """Check that `root / folder` holds the files of `checksums`; arguments as of `fetch`.

    Raises:
        DataError: one is missing or damaged.
    """
    if problem := _problem(root / folder, checksums, memory):
        raise DataError(f"paths.data={root}: data={name}: {problem}; remove it, and it is downloaded anew")


@contextmanager
def _locked(root: Path, name: str) -> Iterator[None]:
    """Hold the lock of a data set, which the system takes from whoever is killed."""
    lock = _lock(root, name)
    try:
        lock.acquire(timeout=PATIENCE_S)
    except Timeout:
        log.info("another process is downloading %s to %s; waiting for it", name, root)
        lock.acquire()
    try:
        if isinstance(lock, SoftFileLock):  # filelock's own way out, which a killed process does not free
            raise OSError(f"{root} is on a file system without locks; copy the files there by hand")
        yield
    finally:
        lock.release()


def _lock(root: Path, name: str) -> FileLock:
    return FileLock(root / f".{name}.lock")


def _sweep(root: Path, name: str) -> None:
    """Remove what killed downloads left, with the lock held: nobody else is downloading."""
    for left in root.glob(f".download-{name}-*"):
        shutil.rmtree(left, ignore_errors=True)


def _sweep_if_free(root: Path, name: str) -> None:
    """Likewise where nothing need be downloaded, unless another process is about to sweep itself."""
    if next(root.glob(f".download-{name}-*"), None) is None:
        return
    lock = _lock(root, name)
    try:
        lock.acquire(timeout=0)
    except (OSError, NotImplementedError):  # held by another, or in a folder that one may only read
        return
    try:
        _sweep(root, name)
    finally:
        lock.release()


def _download(
    name: str,
    root: Path,
    folder: Path,
    checksums: Mapping[str, str],
    download: Callable[[str], object],
) -> None:
    with tempfile.TemporaryDirectory(
        dir=root, prefix=f".download-{name}-", ignore_cleanup_errors=True
    ) as staging:
        download(staging)
        arrived = Path(staging) / folder
        if problem := _problem(arrived, checksums):
            raise OSError(problem)
        (root / folder).mkdir(parents=True, exist_ok=True)
        for file in checksums:
            move_into(arrived / file, root / folder / file)


def _problem(folder: Path, checksums: Mapping[str, str], memory: Path | None = None) -> str:
    """What is wrong with the files, or an empty string."""
    for file, expected in checksums.items():
        path = folder / file
        if not path.is_file():
            return f"{path} is missing"
        found = digest_of(path, _md5, memory)
        if found != expected:
            return f"{path} is damaged: MD5 {found}, expected {expected}"
    return ""


_md5 = md5_of
