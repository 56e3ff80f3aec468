"""Cache of decoded images in files that later runs and the jobs of a sweep memory-map."""

import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from project.datamodules.downloads import cached_digest
from project.datamodules.loading.loader import MemoryImages
from project.errors import one_line
from project.runtime.text import short_name

log = logging.getLogger(__name__)

SUFFIX = ".images"
MAX_FOLDER_BYTES = 32 * 2**30  # beyond this size the least recently used files are removed
DAY_S = 86_400
MAX_STEM_BYTES = 200  # of a file's name: suffixes of lock and staging file must fit the limit of 255


class ImageCache:
    """Folder of decoded image sets, one file each.

    A file that is damaged or has another key is replaced. If a file cannot be written, every run decodes its
    images.

    Args:
        folder: folder of the files; None disables the cache.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @property
    def checksums(self) -> Path | None:
        """JSON file of verified checksums, see `cached_digest`; None without a folder."""
        return self.folder and self.folder / "verified.json"

    def load(
        self,
        name: str,
        key: Mapping[str, Any],
        make: Callable[[], tuple[Tensor, Tensor]],
        *,
        channels_last: bool,
    ) -> MemoryImages:
        """Return cached images, or make and cache them; one process makes them while others wait.

        Args:
            name: name of the file.
            key: all that the images depend on, in plain values.
            make: function that returns images (N, C, H, W) uint8 and labels (N,) long.
            channels_last: memory order of the images.
        """
        if self.folder is None:
            return MemoryImages(*make(), channels_last=channels_last)
        stem = f"{short_name(name, MAX_STEM_BYTES)}{'-channels_last' if channels_last else ''}"
        file = self.folder / f"{stem}{SUFFIX}"
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        if (cached := self._find(file, digest)) is not None:
            return cached
        lock = FileLock(file.with_name(f".{file.name}.lock"))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (OSError, NotImplementedError) as error:  # the latter on file systems without locks
            _log_not_cached(file, error)
            return MemoryImages(*make(), channels_last=channels_last)
        try:
            if (cached := self._find(file, digest)) is not None:  # written by another process
                return cached
            images = MemoryImages(*make(), channels_last=channels_last)
            return (self._find(file, digest) if _write(file, images, digest) else None) or images
        finally:
            lock.release()

    def _find(self, file: Path, key: str) -> MemoryImages | None:
        """Memory-map a file if it exists, has this key and is undamaged; None otherwise."""
        try:
            if not file.is_file():
                return None
            images, saved_key, crc = _read(file)
            problem = "outdated" if saved_key != key else "damaged"
            if saved_key == key and cached_digest(file, _crc_of, self.checksums) == crc:
                return images
        except Exception as error:  # a damaged file raises any exception
            problem = f"damaged or unreadable ({one_line(error)})"
        log.info("%s is %s; decoding its images again", file, problem)
        return None


def _read(file: Path) -> tuple[MemoryImages, str, str]:
    """Memory-map a file; return its images, key and checksum."""
    facts = file.stat()
    if time.time() - facts.st_atime > DAY_S:  # some file systems do not update access times
        with suppress(OSError):
            os.utime(file, ns=(time.time_ns(), facts.st_mtime_ns))
    saved = torch.load(file, mmap=True, weights_only=True)
    images, labels, channels_last = saved["images"], saved["labels"], saved["channels_last"]
    mapped = MemoryImages(images, labels, channels_last=channels_last, is_mapped=True)
    return mapped, saved["key"], saved["crc"]


def _crc(images: MemoryImages, key: str) -> str:
    found = zlib.crc32(f"{key} {images.shape} {images.channels_last}".encode())
    found = zlib.crc32(images.labels.numpy().data, found)
    return str(zlib.crc32(images.to_rows(images.images).numpy().data, found))


def _crc_of(file: Path) -> str:
    return _crc(*_read(file)[:2])


def _write(file: Path, images: MemoryImages, key: str) -> bool:
    """Write a file atomically; return False, and log the reason, if it cannot be written."""
    staging = file.with_name(f".{file.name}.new")  # unique: this process holds the lock
    saved = {"images": images.images, "labels": images.labels, "channels_last": images.channels_last}
    try:
        _make_room(file, images.nbytes + images.labels.nbytes)
        with staging.open("wb") as stream:
            torch.save({**saved, "key": key, "crc": _crc(images, key)}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        staging.replace(file)
    except (OSError, RuntimeError) as error:  # torch raises the latter while handling the former
        with suppress(OSError):
            staging.unlink()
        _log_not_cached(file, error.__context__ or error)
        return False
    return True


def _make_room(file: Path, size: int) -> None:
    """Remove the least recently used files beyond `MAX_FOLDER_BYTES`.

    Raises:
        OSError: the disk has less than twice `size` bytes free.
    """
    others = [(other.stat(), other) for other in file.parent.glob(f"*{SUFFIX}") if other != file]
    total = size
    for facts, other in sorted(others, key=lambda pair: pair[0].st_atime, reverse=True):
        total += facts.st_size
        if total > MAX_FOLDER_BYTES:
            other.unlink(missing_ok=True)
    free = shutil.disk_usage(file.parent).free
    if free < 2 * size:
        raise OSError(f"{size / 1e6:,.1f} MB needed, only {free / 1e6:,.1f} MB free")


def _log_not_cached(file: Path, reason: object) -> None:
    log.info(
        "paths.image_cache=%s: decoded images cannot be cached (%s); every run decodes them",
        file.parent,
        reason,
    )
