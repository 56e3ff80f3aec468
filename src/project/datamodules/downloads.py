"""Downloads of published data sets: one process downloads, all verify checksums."""

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
from project.runtime.atomic_files import atomic_replacement

log = logging.getLogger(__name__)

TIMEOUT_S = 30  # of a server that does not answer
MAX_ATTEMPTS = 2  # per mirror
RETRY_PAUSE_S = 1.0  # between attempts
LOCK_NOTICE_S = 1.0  # of waiting for another process, before a log line says so
BLOCK_BYTES = 2**20
MTIME_RESOLUTION_S = 2  # coarsest modification times of any file system: later changes are visible
REVERIFY_AFTER_S = 7 * 86_400  # age at which a digest is verified again in the background: disks decay
REVERIFY_LEASE_S = 3600  # time for which the process that verifies again keeps others from it
STALE_PART_S = 3600  # age at which an unfinished digest file belongs to a killed process


class ArchiveError(OSError):
    """Failed download of an archive, or content that differs from the published one."""


@dataclass(frozen=True)
class Archive:
    """Downloadable file and the files in it."""

    name: str  # file name below each mirror's URL
    mirrors: Sequence[str]  # tried in order
    md5: str
    size: int  # bytes; longer downloads are aborted
    # Names of the files to unpack from a `.tar.gz`, or of the single file in a `.gz`; empty: keep the file.
    members: Sequence[str] = ()
    unpacked_size: int = 0  # maximum size of a member, bytes


def ensure_downloaded(
    name: str,
    root: Path,
    folder: Path,
    checksums: Mapping[str, str],
    download: Callable[[Path], object],
    digest_file: Path | None = None,
) -> None:
    """Download a data set unless `root / folder` holds undamaged copies of all its files.

    One process downloads while the others wait; if it is killed, another process continues. The files are
    moved from a staging folder on the same file system after all of them are verified.

    Args:
        name: name of the data set, as in `data=…`.
        root: folder of all data sets, `paths.data`.
        folder: folder of this data set, relative to `root`.
        checksums: MD5 of each file, by its name in `folder`.
        download: function that writes the files into an empty folder.
        digest_file: see `cached_digest` (default None).

    Raises:
        DataError: the files are missing or damaged, and cannot be downloaded.
    """
    lock, staging = FileLock(root / f".{name}.lock"), root / f".download-{name}"
    if not (problem := find_problem(root / folder, checksums, digest_file)):
        if staging.exists():  # left by a killed download, unless another process holds the lock
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
    except (OSError, NotImplementedError) as error:  # the latter on file systems without locks
        raise DataError(
            f"paths.data={root}: data={name} is missing or damaged ({problem}) and could not be downloaded "
            f"({one_line(error)}); copy its files to {root / folder}, or train on data=digits, which needs "
            "no download"
        ) from error


def require_undamaged(
    name: str, root: Path, folder: Path, checksums: Mapping[str, str], digest_file: Path | None = None
) -> None:
    """Check the files of a data set; arguments as in `ensure_downloaded`.

    Raises:
        DataError: a file is missing or damaged.
    """
    if problem := find_problem(root / folder, checksums, digest_file):
        raise DataError(f"paths.data={root}: data={name}: {problem}; remove the file to download it again")


def find_problem(folder: Path, checksums: Mapping[str, str], digest_file: Path | None = None) -> str:
    """Return the first missing or damaged file of a folder as a phrase; empty if there is none."""
    for file, expected in checksums.items():
        path = folder / file
        if not path.is_file():
            return f"{path} is missing"
        if (found := cached_digest(path, md5_of, digest_file)) != expected:
            return f"{path} is damaged: MD5 {found}, expected {expected}"
    return ""


def download_archives(archives: Iterable[Archive], folder: Path) -> None:
    """Download archives, and unpack their members into an empty folder without subfolders."""
    for archive in archives:
        if not archive.members:
            download_archive(archive, folder / archive.name)
            continue
        file = folder / f".{archive.name}"
        download_archive(archive, file)
        unpack(archive, file, folder)
        file.unlink()


def download_archive(archive: Archive, file: Path) -> None:
    """Download an archive from the first mirror that serves it undamaged.

    Raises:
        ArchiveError: no mirror serves it.
        OSError: `file` cannot be written.
    """
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
            except (
                RequestException,
                ArchiveError,
                ValueError,
            ) as error:  # another OSError concerns the local disk
                problems[f"{url}: {_reason(error)}"] = None
    raise ArchiveError("; ".join(problems))


def _reason(error: Exception) -> str:
    """Return the cause in an error of urllib3, without the names of connection objects."""
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    return summarize(cause or error).rpartition("): ")[2]


def unpack(archive: Archive, file: Path, folder: Path) -> None:
    """Unpack the members of a verified archive, by file name alone: paths could lead out of the folder.

    Raises:
        ArchiveError: the archive is damaged, lacks a member, or has one that is too large.
    """
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
    raise ArchiveError(f"{archive.name}: {min(missing)} is missing")


def _copy_member(archive: Archive, name: str, source: IO[bytes] | gzip.GzipFile, folder: Path) -> None:
    with (folder / PurePosixPath(name).name).open("xb") as stream:
        shutil.copyfileobj(source, _BoundedFile(stream, archive.unpacked_size, name), BLOCK_BYTES)
        stream.flush()
        os.fsync(stream.fileno())


class _BoundedFile:
    """Writable file with a maximum size in bytes."""

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
    """Hold a lock that the operating system releases when the process is killed."""
    try:
        lock.acquire(timeout=LOCK_NOTICE_S)
    except Timeout:
        log.info(notice)
        lock.acquire()
    try:
        if isinstance(lock, SoftFileLock):  # filelock's fallback: a killed process leaves it locked
            raise OSError("the file system has no locks; copy the files there by hand")
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
    """Return the digest of a file, from memory or `digest_file` if the file has not changed since.

    Args:
        file: existing file.
        compute: function that reads the file and returns its digest.
        digest_file: JSON file that keeps digests for later processes (default None); write errors are
            ignored.
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
            "warning: %s is damaged: its content changed without a write, and this run may have used it; the "
            "next run downloads or decodes it again, or reports the fix",
            path,
        )


def _read_digests(digest_file: Path | None) -> dict[str, list[Any]]:
    with suppress(OSError, ValueError):
        found = json.loads(digest_file.read_text()) if digest_file else None
        if isinstance(found, dict):
            return {path: entry for path, entry in found.items() if isinstance(entry, list)}
    return {}


def _write_digest(digest_file: Path, path: str, entry: tuple[Any, ...]) -> None:
    """Add an entry. If two processes write at once, one entry is lost, and its digest computed again."""
    with suppress(OSError):
        digest_file.parent.mkdir(parents=True, exist_ok=True)
        for left in digest_file.parent.glob(f".{digest_file.name}.*.part"):
            if time.time() - left.stat().st_mtime > STALE_PART_S:
                left.unlink(missing_ok=True)
        kept: dict[str, Any] = {
            known: old for known, old in _read_digests(digest_file).items() if Path(known).exists()
        }
        with atomic_replacement(digest_file) as staging:
            staging.write_text(json.dumps(kept | {path: entry}, indent=1))
