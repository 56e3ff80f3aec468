"""Checkpoint files on the disk: whole or not there, each with its checksum beside it. Needs no torch.

A file is written under another name in its own folder, so that the last step, to give it its name, happens
or does not (from a temporary folder elsewhere it would be copied). `last.ckpt.sha256` is what `sha256sum -c`
reads. While a checkpoint is replaced it names the digests of the old file and of the new one:
both are right, whatever moment the process ends at.
"""

import errno
import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from project.errors import summarize
from project.runtime import signals

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
BEST = "best.ckpt"
NEWEST_FIRST = (LAST, PREVIOUS, BEST)
"""In which order a run that goes on tries its checkpoints."""

KEPT: Mapping[str, str] = {LAST: PREVIOUS}
"""Of these the file that is replaced is kept, under another name."""

PARTIAL = ".partial"
SPARE_BYTES = 2**20
"""What should be left on the disk after a checkpoint."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the message says why, and which one stays."""

    exit_code = 1


class Found(NamedTuple):
    """The checkpoint from which a run goes on.

    Args:
        path: the newest whole one, None: there is none.
        damaged: what is wrong with those that are newer, a line each.
    """

    path: Path | None
    damaged: list[str]


def write(path: Path, dump: Callable[[IO[bytes]], object], size: int) -> None:
    """Write a checkpoint and its checksum; until that has succeeded the earlier ones stay as they are.

    Args:
        path: of the checkpoint. What has the name already is replaced.
        dump: writes the content to the stream that it is given.
        size: bytes that it will write, about: there must be room for them.

    Raises:
        CheckpointError: the disk is full, say, or may not be written to.
    """
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if 0 < free < size + SPARE_BYTES:
            raise OSError(
                errno.ENOSPC, f"{_megabytes(free)} are free, {_megabytes(size + SPARE_BYTES)} needed"
            )
        with partial.open("wb") as file:
            hashing = _Hashing(file)
            try:
                with signals.surfacing():  # torch finishes its archive all the same
                    dump(hashing)  # type: ignore[arg-type]
            except RuntimeError:
                if hashing.failure is None:
                    raise
                raise hashing.failure from None  # torch finishes its archive all the same, and fails at that
            _to_disk(file)
        digest, earlier = hashing.digest.hexdigest(), _digests(path)
        _write_digests(path, [*earlier, digest], durable=True)
        if path.name in KEPT and path.exists():
            _keep(path, path.with_name(KEPT[path.name]), earlier)
        partial.replace(path)
    except BaseException as error:
        sweep(path.parent)
        if isinstance(error, OSError):
            raise CheckpointError(_failed(path, error)) from error
        raise
    with suppress(OSError):  # it is safe now; this tidies up
        _write_digests(path, [digest])
        _folder_to_disk(path.parent)


def find_damage(path: Path) -> str:
    """Say what is wrong with a checkpoint file; an empty string if it is as it was written.

    Where the file with its checksum is missing, the sums within the archive are looked at: they find most
    damage, but not all.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"is not there ({error.strerror})"
    if not path.is_file():
        return "is no file"
    if not size:
        return "is empty"
    try:
        if known := _digests(path):
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            return (
                "" if found in known else "is damaged: its SHA-256 is not that of " + _digest_file(path).name
            )
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        return f"is damaged in {broken}" if broken else ""
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
        return f"is damaged or no checkpoint ({summarize(error)})"


def has_checksum(path: Path) -> bool:
    """Tell whether a file was written by `write`, be it damaged by now."""
    return bool(_digests(path))


def newest(folder: Path) -> Found:
    """Find the checkpoint from which a run goes on: the newest that is whole."""
    damaged: list[str] = []
    for name in NEWEST_FIRST:
        path = folder / name
        if not path.exists() and not _digest_file(path).exists():
            continue
        if not (problem := find_damage(path)):
            return Found(path, damaged)
        damaged.append(f"{path} {problem}")
    return Found(None, damaged)


def remove(path: Path) -> None:
    """Remove a checkpoint and its checksum; nothing happens if they are not there."""
    path.unlink(missing_ok=True)
    _digest_file(path).unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what was left half written."""
    with suppress(OSError):
        for partial in folder.glob(f".*{PARTIAL}"):
            with suppress(OSError):
                partial.unlink()


class _Hashing:
    """A stream that hashes what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        try:
            return self.file.write(content)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digests(path: Path) -> list[str]:
    """Digests of which the file has one; none: unknown."""
    with suppress(OSError, UnicodeDecodeError):
        lines = _digest_file(path).read_text().splitlines()
        return [line.split()[0] for line in lines if line.strip()]
    return []


def _write_digests(path: Path, digests: list[str], *, durable: bool = False) -> None:
    target = _digest_file(path)
    partial = target.with_name(f".{target.name}{PARTIAL}")
    with partial.open("w") as file:
        file.writelines(f"{digest}  {path.name}\n" for digest in digests)
        if durable:
            _to_disk(file)
    partial.replace(target)


def _keep(path: Path, kept: Path, digests: list[str]) -> None:
    """Give a file a second name, so that it is there at each moment under one of them at least."""
    _write_digests(kept, [*_digests(kept), *digests])
    link = kept.with_name(f".{kept.name}{PARTIAL}")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # not on this file system
        path.replace(kept)
    else:
        link.replace(kept)
    _write_digests(kept, digests)


def _to_disk(file: IO[bytes] | IO[str]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _folder_to_disk(folder: Path) -> None:
    with suppress(OSError):  # some file systems have no such thing
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _failed(path: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    stays = newest(path.parent).path
    remedy = {
        errno.ENOSPC: "make room on the disk",
        errno.EDQUOT: "make room within your quota",
        errno.EROFS: "make the file system writable",
    }.get(error.errno or 0, "see that the folder can be written to")
    kept = f"{stays.name} stays as it was" if stays else "there is no earlier one"
    return f"{path}: could not be saved ({reason}); {kept}; {remedy} and go on with resume=…"


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
