"""Fetching a data set once, whole and checked, however many processes want it."""

import contextlib
import hashlib
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock

from project.datamodules.checksums import digest_of
from project.errors import InputError

log = logging.getLogger(__name__)

SILENCE_S = 30
"""Seconds without an answer after which a server counts as out of reach."""


def fetch(
    name: str,
    root: Path,
    folder: Path,
    checksums: Mapping[str, str],
    download: Callable[[str], object],
    memory: Path | None = None,
) -> None:
    """Make sure that `root / folder` holds the files of `checksums`, undamaged.

    One process downloads while the others wait. Files arrive in a folder of their own on the same file
    system and are moved in one by one when all are there and correct.

    Args:
        name: as in `data=…`, for messages.
        root: `paths.data`.
        folder: below `root`.
        checksums: MD5 of each file, by its name in `folder`.
        download: fetches the set into the root that it is given, in the same layout.
        memory: where it is remembered which files were found undamaged (see `digest_of`).

    Raises:
        InputError: the files are missing or damaged, and could not be fetched.
    """
    if not (problem := _problem(root / folder, checksums, memory)):
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            problem = _problem(root / folder, checksums, memory)
            if problem:
                log.info("downloading %s to %s", name, root)
                _download(root, folder, checksums, download)
    except (OSError, RuntimeError) as error:  # RuntimeError: torchvision's, when every mirror failed
        reason = " ".join(str(error).split())
        raise InputError(
            f"paths.data={root}: data={name} is not there ({problem}) and could not be downloaded "
            f"({reason}); put its files into {root / folder}, or train on the embedded data=digits"
        ) from error


def verify(
    name: str, root: Path, folder: Path, checksums: Mapping[str, str], memory: Path | None = None
) -> None:
    """Check that `root / folder` holds the files of `checksums`; arguments as of `fetch`.

    Raises:
        InputError: one is missing or damaged.
    """
    if problem := _problem(root / folder, checksums, memory):
        raise InputError(f"paths.data={root}: data={name}: {problem}; remove it, and it is downloaded anew")


def _download(
    root: Path, folder: Path, checksums: Mapping[str, str], download: Callable[[str], object]
) -> None:
    earlier_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_S)
    try:
        with (
            tempfile.TemporaryDirectory(dir=root, prefix=".download-") as staging,
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),  # torchvision prints each mirror's failure
            contextlib.redirect_stderr(nowhere),  # and a bar a file
        ):
            download(staging)
            arrived = Path(staging) / folder
            if problem := _problem(arrived, checksums):
                raise OSError(problem)
            (root / folder).mkdir(parents=True, exist_ok=True)
            for file in checksums:
                shutil.move(arrived / file, root / folder / file)
    finally:
        socket.setdefaulttimeout(earlier_timeout)


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


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
