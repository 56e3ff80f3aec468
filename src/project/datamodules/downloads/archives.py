"""Downloading archives and taking files out of them, without trusting the server or the archive.

An archive is unpacked when its checksum has proved right, and only the files that are expected are read from
it, each by its own name: no path that stands in an archive is ever used.
"""

import gzip
import hashlib
import http.client
import logging
import os
import tarfile
import time
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from project.errors import summarize

log = logging.getLogger(__name__)

SILENCE_S = 30
"""Seconds without an answer after which a server counts as out of reach."""
ATTEMPTS = 2
"""How often all mirrors are asked."""
PAUSE_S = 1.0
"""Seconds between two rounds of asking."""
BLOCK = 2**20
"""Bytes that are read at a time."""


class ArchiveError(OSError):
    """An archive cannot be had, or is not what it should be."""


class SupportsRead(Protocol):
    """Something that is read bit by bit."""

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes, none at the end."""
        ...


@dataclass(frozen=True)
class Archive:
    """A file to download and what is in it.

    Args:
        name: of the file, below each mirror's address.
        mirrors: addresses, the first is asked first.
        md5: of the file.
        size: of the file, bytes; a server that sends more is not listened to.
        members: names of the files in it that are wanted; of a `.gz` file, the name of the only one.
        unpacked_size: bytes that a member has at most.
    """

    name: str
    mirrors: Sequence[str]
    md5: str
    size: int
    members: Sequence[str]
    unpacked_size: int


def obtain(archives: Sequence[Archive], folder: Path) -> None:
    """Download archives and put their members into a folder.

    Args:
        archives: tar archives compressed by gzip, or single files compressed so.
        folder: an empty one; members lie directly in it.

    Raises:
        ArchiveError: no mirror has an archive, or it is damaged.
    """
    for archive in archives:
        file = folder / f".{archive.name}"
        _download(archive, file)
        unpack(archive, file, folder)
        file.unlink()


def unpack(archive: Archive, file: Path, folder: Path) -> None:
    """Read the wanted members of a file whose checksum was right.

    Raises:
        ArchiveError: one is missing, too large or no plain file.
    """
    try:
        if archive.name.endswith((".tar.gz", ".tgz")):
            _unpack_tar(archive, file, folder)
        else:
            with gzip.open(file) as source:
                _copy(source, folder / PurePosixPath(archive.members[0]).name, archive.unpacked_size)
    except (EOFError, zlib.error, tarfile.TarError, gzip.BadGzipFile) as error:
        raise ArchiveError(f"{archive.name} is damaged ({error})") from error


def md5_of(path: Path) -> str:
    """MD5 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _unpack_tar(archive: Archive, file: Path, folder: Path) -> None:
    missing = set(archive.members)
    with tarfile.open(file, "r:gz") as tar:
        for entry in tar:
            if entry.name not in missing:
                continue
            if not entry.isreg() or (source := tar.extractfile(entry)) is None:
                raise ArchiveError(f"{archive.name}: {entry.name} is no plain file")
            with source:
                _copy(source, folder / PurePosixPath(entry.name).name, archive.unpacked_size)
            missing.remove(entry.name)
            if not missing:
                return
    raise ArchiveError(f"{archive.name}: {min(missing)} is not in it")


def _copy(source: SupportsRead, target: Path, most: int) -> None:
    """Write at most so many bytes, down to the disk."""
    with target.open("xb") as stream:
        written = 0
        while block := source.read(min(BLOCK, most + 1 - written)):
            written += len(block)
            if written > most:
                raise ArchiveError(f"{target.name} is larger than {most:,} bytes")
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())


def _download(archive: Archive, file: Path) -> None:
    failures: list[str] = []
    for attempt in range(ATTEMPTS):
        for mirror in archive.mirrors:
            address = f"{mirror.rstrip('/')}/{archive.name}"
            try:
                _copy_from(address, file, archive)
            except ArchiveError as error:  # any other OSError is of our own disk
                failures.append(f"{address}: {error}")
                file.unlink(missing_ok=True)
            else:
                return
        if attempt + 1 < ATTEMPTS:
            time.sleep(PAUSE_S)
    raise ArchiveError("; ".join(dict.fromkeys(failures)))


def _copy_from(address: str, file: Path, archive: Archive) -> None:
    if not address.startswith(("https://", "http://")):
        raise ArchiveError("no address of a server")
    with _of_server():
        answer = urllib.request.urlopen(address, timeout=SILENCE_S)  # noqa: S310 (checked above)
    with answer:
        _copy(_Answer(answer), file, archive.size)
    if (found := md5_of(file)) != archive.md5:
        raise ArchiveError(f"arrived damaged: MD5 {found}, expected {archive.md5}")


class _Answer:
    """What a server sends; errors of the network are told from those of the disk that it is written to.

    Args:
        stream: of the server.
    """

    def __init__(self, stream: SupportsRead) -> None:
        self._stream = stream

    def read(self, size: int, /) -> bytes:
        """See `SupportsRead`."""
        with _of_server():
            return self._stream.read(size)


@contextmanager
def _of_server() -> Iterator[None]:
    """Turn whatever is raised while a server is asked into an `ArchiveError`, by which another is asked."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ArchiveError(summarize(error)) from error


def move_into(source: Path, target: Path) -> None:
    """Move a complete file to its place, from a folder of the same file system."""
    source.replace(target)
    if hasattr(os, "O_DIRECTORY"):  # the name is on the disk, too
        descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
