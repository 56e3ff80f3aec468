"""Published data sets: downloaded once by one of many processes, and verified by checksums."""

import gzip
import hashlib
import json
import logging
import os
import shutil
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

from filelock import FileLock, SoftFileLock, Timeout

from project.errors import DataError, one_line, summarize
from project.runtime.atomic_files import replacing

log = logging.getLogger(__name__)

TIMEOUT_S = 30  # without an answer, after which a server counts as out of reach
MAX_ATTEMPTS = 2  # rounds over all mirrors
RETRY_PAUSE_S = 1.0  # between two rounds
LOCK_NOTICE_S = 1.0  # of waiting for another process until it is logged
BLOCK_BYTES = 2**20
MTIME_RESOLUTION_S = (
    2  # after which a change of a file also changes its time, whatever the file system's clock
)
REVERIFY_AFTER_S = (
    7 * 86_400
)  # until an unchanged file is verified again, in the background: disks may change data
REVERIFY_LEASE_S = 3600  # for which other processes leave that verification to the one that began it
STALE_PART_S = 3600  # after which nobody is still writing a file of a few kilobytes


class ArchiveError(OSError):
    """An archive that cannot be downloaded, or is not as published."""


@dataclass(frozen=True)
class Archive:
    """A file to download and its content."""

    name: str  # below each mirror's URL; a `.tar.gz`, or one file compressed as `.gz`
    mirrors: Sequence[str]  # tried in order
    md5: str
    size: int  # bytes; more is refused
    members: Sequence[str]  # names of the files to unpack
    unpacked_size: int  # most bytes of a member


def ensure_downloaded(
    name: str,
    root: Path,
    folder: Path,
    checksums: Mapping[str, str],
    download: Callable[[Path], object],
    digest_file: Path | None = None,
) -> None:
    """Download a data set unless `root / folder` holds the files of `checksums`, undamaged.

    One process downloads while the others wait; if it is killed, another one takes over. Files are moved
    from a staging folder on the same file system when all of them are verified.

    Args:
        name: as in `data=…`.
        root: `paths.data`.
        folder: below `root`.
        checksums: MD5 of each file, by its name in `folder`.
        download: puts the files into an empty folder.
        digest_file: see `cached_digest`.

    Raises:
        DataError: the files are missing or damaged, and cannot be downloaded.
    """
    lock, staging = FileLock(root / f".{name}.lock"), root / f".download-{name}"
    if not (problem := find_problem(root / folder, checksums, digest_file)):
        if staging.exists():  # of a killed download, unless another process uses it now
            with suppress(OSError, NotImplementedError), lock.acquire(timeout=0):
                shutil.rmtree(staging, ignore_errors=True)
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _hold_lock(lock, f"another process is downloading {name} to {root}; waiting for it"):
            shutil.rmtree(staging, ignore_errors=True)
            if problem := find_problem(root / folder, checksums, digest_file):
                log.info("downloading %s to %s", name, root)
                _download_to(root / folder, staging, checksums, download)
    except (OSError, NotImplementedError) as error:  # the latter where there are no locks
        raise DataError(
            f"paths.data={root}: data={name} is not there ({problem}) and could not be downloaded "
            f"({one_line(error)}); put its files into {root / folder}, or train on the embedded data=digits"
        ) from error


def require_undamaged(
    name: str, root: Path, folder: Path, checksums: Mapping[str, str], digest_file: Path | None = None
) -> None:
    """Refuse files that are missing or damaged; arguments as in `ensure_downloaded`."""
    if problem := find_problem(root / folder, checksums, digest_file):
        raise DataError(f"paths.data={root}: data={name}: {problem}; remove it, and it is downloaded again")


def find_problem(folder: Path, checksums: Mapping[str, str], digest_file: Path | None = None) -> str:
    """Return what is wrong with the files of a folder; empty if nothing is."""
    for file, expected in checksums.items():
        path = folder / file
        if not path.is_file():
            return f"{path} is missing"
        if (found := cached_digest(path, md5_of, digest_file)) != expected:
            return f"{path} is damaged: MD5 {found}, expected {expected}"
    return ""


def download_archives(archives: Iterable[Archive], folder: Path) -> None:
    """Download archives and unpack their members directly into an empty folder."""
    for archive in archives:
        file = folder / f".{archive.name}"
        download_archive(archive, file)
        unpack(archive, file, folder)
        file.unlink()


def download_archive(archive: Archive, file: Path) -> None:
    """Download an archive from the first mirror that has it undamaged."""
    import pooch
    from requests import RequestException

    pooch.get_logger().setLevel(logging.WARNING)
    request = pooch.HTTPDownloader(
        timeout=TIMEOUT_S, chunk_size=BLOCK_BYTES, headers={"Accept-Encoding": "identity"}
    )

    def bounded(url: str, path: str, _: object) -> None:
        with Path(path).open("wb") as stream:
            request(url, _BoundedFile(stream, archive.size, archive.name), None)

    problems: dict[str, None] = {}
    for attempt in range(MAX_ATTEMPTS):
        time.sleep(RETRY_PAUSE_S if attempt else 0)
        for mirror in archive.mirrors:
            url = f"{mirror.rstrip('/')}/{archive.name}"
            try:
                pooch.retrieve(url, f"md5:{archive.md5}", file.name, file.parent, downloader=bounded)
                return
            except (RequestException, ArchiveError, ValueError) as error:  # another OSError is of our disk
                problems[f"{url}: {_reason(error)}"] = None
    raise ArchiveError("; ".join(problems))


def _reason(error: Exception) -> str:
    """Return the cause that urllib3 states, without the names of its connections."""
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    return summarize(cause or error).rpartition("): ")[2]


def unpack(archive: Archive, file: Path, folder: Path) -> None:
    """Unpack the members of a file whose checksum is verified, by name: paths in an archive are not used."""
    try:
        if not archive.name.endswith((".tar.gz", ".tgz")):
            with gzip.open(file) as content:
                _copy_member(archive, archive.members[0], content, folder)
            return
        missing = set(archive.members)
        with tarfile.open(file, "r:gz") as tar:
            for entry in tar:
                if entry.name not in missing:
                    continue
                if not entry.isreg() or (source := tar.extractfile(entry)) is None:
                    raise ArchiveError(f"{archive.name}: {entry.name} is not a regular file")
                _copy_member(archive, entry.name, source, folder)
                missing.remove(entry.name)
                if not missing:
                    return
    except (EOFError, zlib.error, tarfile.TarError, gzip.BadGzipFile) as error:
        raise ArchiveError(f"{archive.name} is damaged ({error})") from error
    raise ArchiveError(f"{archive.name}: {min(missing)} is not in it")


def _copy_member(archive: Archive, name: str, source: IO[bytes] | gzip.GzipFile, folder: Path) -> None:
    with (folder / PurePosixPath(name).name).open("xb") as stream:
        shutil.copyfileobj(source, _BoundedFile(stream, archive.unpacked_size, name), BLOCK_BYTES)
        stream.flush()
        os.fsync(stream.fileno())


class _BoundedFile:
    """An open file that refuses to grow beyond a size, bytes."""

    def __init__(self, stream: IO[bytes], most: int, name: str) -> None:
        self.stream = stream
        self.most = most
        self.name = name
        self.flush = stream.flush

    def write(self, block: bytes) -> None:
        if self.stream.tell() + len(block) > self.most:
            raise ArchiveError(f"{self.name} is larger than {self.most:,} bytes")
        self.stream.write(block)


@contextmanager
def _hold_lock(lock: FileLock, notice: str) -> Iterator[None]:
    """Hold a lock that the system releases when the process is killed."""
    try:
        lock.acquire(timeout=LOCK_NOTICE_S)
    except Timeout:
        log.info(notice)
        lock.acquire()
    try:
        if isinstance(lock, SoftFileLock):  # filelock's fallback, which a killed process leaves behind
            raise OSError("its file system has no locks; copy the files there by hand")
        yield
    finally:
        lock.release()


def _download_to(
    folder: Path, staging: Path, checksums: Mapping[str, str], download: Callable[[Path], object]
) -> None:
    staging.mkdir()
    try:
        download(staging)
        if problem := find_problem(staging, checksums):
            raise OSError(problem)
        folder.mkdir(parents=True, exist_ok=True)
        for file in checksums:
            (staging / file).replace(folder / file)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def md5_of(file: Path) -> str:
    """Return the MD5 of a file, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def cached_digest(file: Path, compute: Callable[[Path], str], digest_file: Path | None = None) -> str:
    """Return the digest of a file, computed if it is not known for the file's present state.

    Args:
        file: must exist.
        compute: reads the file.
        digest_file: JSON file that keeps digests for later processes, where it can be written.
    """
    facts = file.stat()
    return _digest(
        str(file.absolute()), (facts.st_size, facts.st_mtime_ns, facts.st_ino), compute, digest_file
    )


@cache
def _digest(
    path: str, state: tuple[int, int, int], compute: Callable[[Path], str], digest_file: Path | None
) -> str:
    now = time.time()
    # Size, modification time and inode of the file; time of the last verification; digest.
    entry = _read_digests(digest_file).get(path, [])
    if digest_file is None or entry[:3] != list(state) or len(entry) != 5:
        digest = compute(Path(path))
        if digest_file is not None and now - state[1] / 1e9 > MTIME_RESOLUTION_S:
            _write_digest(digest_file, path, (*state, now, digest))
        return digest
    digest = str(entry[4])
    if not 0 <= now - float(entry[3]) < REVERIFY_AFTER_S:
        _write_digest(digest_file, path, (*state, now - REVERIFY_AFTER_S + REVERIFY_LEASE_S, digest))
        again = (path, compute, digest_file, (*state, now, digest))
        threading.Thread(target=_verify_again, args=again, name="checksum", daemon=True).start()
    return digest


def _verify_again(
    path: str, compute: Callable[[Path], str], digest_file: Path, entry: tuple[Any, ...]
) -> None:
    with suppress(OSError):
        if compute(Path(path)) == entry[-1]:
            _write_digest(digest_file, path, entry)
            return
        _write_digest(digest_file, path, ())
        log.warning(
            "warning: %s is damaged: its content changed though nobody wrote it, and this run may have used "
            "it; the next start repairs it or names the remedy",
            path,
        )


def _read_digests(digest_file: Path | None) -> dict[str, list[Any]]:
    with suppress(OSError, ValueError):
        found = json.loads(digest_file.read_text()) if digest_file else None
        if isinstance(found, dict):
            return {path: entry for path, entry in found.items() if isinstance(entry, list)}
    return {}


def _write_digest(digest_file: Path, path: str, entry: tuple[Any, ...]) -> None:
    """Add an entry. Where two processes write at once, one entry is lost, and its file is read again."""
    with suppress(OSError):
        digest_file.parent.mkdir(parents=True, exist_ok=True)
        for left in digest_file.parent.glob(f".{digest_file.name}.*.part"):
            if time.time() - left.stat().st_mtime > STALE_PART_S:
                left.unlink(missing_ok=True)
        kept: dict[str, Any] = {
            known: old for known, old in _read_digests(digest_file).items() if Path(known).exists()
        }
        with replacing(digest_file) as staging:
            staging.write_text(json.dumps(kept | {path: entry}, indent=1))
