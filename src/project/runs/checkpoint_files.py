"""Checkpoints: written atomically with a checksum, found again, and read without running code in them.

A checkpoint is written under a temporary name in its folder and renamed at the end. `last.ckpt.sha256` has
the format of `sha256sum -c`. While a checkpoint is being replaced, it lists both digests, old and new.
Checkpoints of a folder with equal content, such as the best and the last one, are hard links of one file.
Torch is imported only to read and to serialize.
"""

import errno
import hashlib
import io
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from project.errors import InputError, one_line, summarize
from project.runtime import signals
from project.runtime.atomic_files import reason_of, refuse_url, sync

if TYPE_CHECKING:
    from torch import Tensor

Checkpoint = dict[str, Any]

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
BEST = "best.ckpt"
NEWEST_FIRST = (LAST, PREVIOUS, BEST)
"""Order in which a resumed run tries its checkpoints."""

PARTIAL = ".partial"
SPARE_BYTES = 2**20
"""Space that a checkpoint leaves free on the disk [bytes]."""
REMEDIES = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room within your quota",
    errno.EROFS: "make the file system writable",
}


class CheckpointError(RuntimeError):
    """Failed write of a checkpoint. The message names the reason and the checkpoint that remains."""

    exit_code = 1


class NewestCheckpoint(NamedTuple):
    """Newest undamaged checkpoint of a folder, None without one, and a line per newer damaged checkpoint."""

    path: Path | None
    damaged: list[str]


def read(path: str | Path, weights: "Mapping[str, Tensor] | None" = None) -> Checkpoint:
    """Read a checkpoint into CPU memory, without running code in it.

    Args:
        path: the file.
        weights: state_dict whose names and shapes the checkpoint must have [None: not compared].

    Raises:
        InputError: a URL, a missing or damaged file, no checkpoint, or other weights.
    """
    import torch

    if line := refuse_url("ckpt_path", str(path)):
        raise InputError(line)
    if problem := find_damage(Path(path)):
        raise InputError(f"ckpt_path={path}: {problem}")
    try:
        checkpoint: Checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        saved = checkpoint["state_dict"]
        checkpoint["epoch"], checkpoint["loops"]["fit_loop"]
    except Exception as error:  # torch.load raises errors of many types
        raise InputError(f"ckpt_path={path}: damaged or not a checkpoint ({summarize(error)})") from error
    if weights is not None:
        different = [
            name
            for name in {*saved, *weights}
            if name not in saved or name not in weights or saved[name].shape != weights[name].shape
        ]
        if different:
            raise InputError(
                f"ckpt_path={path}: from another network ({len(different)} weights differ, such as "
                f"{min(different)}); choose the same model and data"
            )
    return checkpoint


def save(checkpoint: Checkpoint, stream: IO[bytes]) -> None:
    """Serialize a checkpoint into a stream."""
    import torch

    torch.save(checkpoint, stream)


def dump(checkpoint: Checkpoint) -> memoryview:
    """Serialize a checkpoint into memory."""
    stream = io.BytesIO()
    save(checkpoint, stream)
    return stream.getbuffer()


def size(checkpoint: Checkpoint) -> int:
    """Return the size of a checkpoint's tensors [bytes], nearly the size of the file."""
    return sum(tensor.nbytes for tensor in _tensors(checkpoint))


def require_loadable(content: memoryview) -> None:
    """Check before the training that a checkpoint can be loaded.

    Raises:
        InputError: the checkpoint holds something other than plain values and tensors.
    """
    import torch

    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = found[1] if found else one_line(error)
        raise InputError(
            f"checkpoint: contains {what}, which cannot be loaded (weights_only=True); keep plain "
            "values and tensors in the states of callbacks, modules and optimizers: float(x), str(path)"
        ) from error


def _tensors(node: Any) -> "Iterator[Tensor]":
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _tensors(child)
    elif hasattr(node, "nbytes"):
        yield node


def write(path: Path, serialize: Callable[[IO[bytes]], object], num_bytes: int) -> None:
    """Write a checkpoint and its checksum; earlier checkpoints remain until this has succeeded.

    Args:
        path: file to write or replace.
        serialize: function that writes the content to a stream.
        num_bytes: approximate size of the content, which must be free on the disk.

    Raises:
        CheckpointError: the file cannot be written, for example on a full or read-only disk.
    """
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if 0 < free < num_bytes + SPARE_BYTES:
            needed = (num_bytes + SPARE_BYTES) / 2**20
            raise OSError(errno.ENOSPC, f"{free / 2**20:,.1f} MiB are free, {needed:,.1f} MiB needed")
        with partial.open("wb") as file:
            hashing = _HashingStream(file)
            try:
                with signals.raise_swallowed():  # torch finishes its archive despite the error
                    serialize(hashing)  # type: ignore[arg-type]
            except RuntimeError:
                if hashing.failure is None:
                    raise
                raise hashing.failure from None  # torch failed to finish its archive
            _flush_to_disk(file)
        digest, earlier = hashing.digest.hexdigest(), _digests(path)
        _write_digests(path, [*earlier, digest], durable=True)
        if path.name == LAST and path.exists():
            _keep(path, path.with_name(PREVIOUS), earlier)
        partial.replace(path)
    except BaseException as error:
        remove_partial(path.parent)
        if isinstance(error, OSError):
            raise CheckpointError(_failure(path, error)) from error
        raise
    with suppress(OSError):  # the checkpoint is safe; only clean-up remains
        _write_digests(path, [digest])
        _share(path, digest)
        sync(path.parent)


def copy(source: Path, target: Path) -> None:
    """Copy a checkpoint, and write its checksum; an existing file is replaced atomically.

    Raises:
        CheckpointError: the copy cannot be written.
        OSError: the source cannot be read.
    """
    with source.open("rb") as file:
        write(target, lambda stream: shutil.copyfileobj(file, stream), source.stat().st_size)


def find_damage(path: Path) -> str:
    """Return the damage of a checkpoint file; an empty string if the file is undamaged.

    Without a checksum file, the CRCs in the archive are checked, which find most damage, but not all.
    """
    try:
        num_bytes = path.stat().st_size
    except OSError as error:
        return f"is missing ({error.strerror})"
    if not path.is_file():
        return "is not a file"
    if not num_bytes:
        return "is empty"
    try:
        if known := _digests(path):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            return (
                "" if digest in known else f"is damaged: its SHA-256 differs from {_digest_file(path).name}"
            )
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        return f"is damaged in {broken}" if broken else ""
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
        return f"is damaged or not a checkpoint ({summarize(error)})"


def has_checksum(path: Path) -> bool:
    """Return True if a file has a checksum file, as written by `write`."""
    return bool(_digests(path))


def newest(folder: Path) -> NewestCheckpoint:
    """Return the newest undamaged checkpoint of a folder."""
    damaged: list[str] = []
    for path in (folder / name for name in NEWEST_FIRST):
        if not path.exists() and not _digest_file(path).exists():
            continue
        if not (problem := find_damage(path)):
            return NewestCheckpoint(path, damaged)
        damaged.append(f"{path} {problem}")
    return NewestCheckpoint(None, damaged)


def remove(path: Path) -> None:
    """Remove a checkpoint and its checksum, if they exist."""
    path.unlink(missing_ok=True)
    _digest_file(path).unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove partly written checkpoints."""
    with suppress(OSError):
        for partial in folder.glob(f".*{PARTIAL}"):
            with suppress(OSError):
                partial.unlink()


class _HashingStream:
    """Stream that hashes all bytes written to a file."""

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
    """Return the possible digests of a file; empty if unknown."""
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
            _flush_to_disk(file)
    partial.replace(target)


def _keep(path: Path, kept: Path, digests: list[str]) -> None:
    """Give a file a second name, so that it exists under at least one name at any time."""
    _write_digests(kept, [*_digests(kept), *digests])
    link = kept.with_name(f".{kept.name}{PARTIAL}")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # no hard links on this file system
        path.replace(kept)
    else:
        link.replace(kept)
    _write_digests(kept, digests)


def _share(path: Path, digest: str) -> None:
    """Replace the folder's other checkpoints of equal content by hard links to a new one, to save space."""
    link = path.with_name(f".{path.name}.link{PARTIAL}")
    for other in path.parent.glob(f"*{path.suffix}"):
        if other != path and _digests(other) == [digest]:
            os.link(path, link)
            link.replace(other)


def _flush_to_disk(file: IO[bytes] | IO[str]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _failure(path: Path, error: OSError) -> str:
    stays = newest(path.parent).path
    kept = f"{stays.name} is unchanged" if stays else "there is no earlier one"
    remedy = REMEDIES.get(error.errno or 0, "make the folder writable")
    return f"{path}: could not be saved ({reason_of(error)}); {kept}; {remedy} and continue with resume=…"
