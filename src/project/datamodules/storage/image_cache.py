"""Decoded images kept in files that are mapped at the next start, and shared by the processes of a sweep."""

import hashlib
import json
import logging
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from project.datamodules.downloads.checksums import digest_of
from project.datamodules.loading.images import MemoryImages
from project.datamodules.storage.memory_map import map_bytes
from project.runtime.text import short_name

log = logging.getLogger(__name__)

FORMAT = 1
SUFFIX = ".images"
PAGE = 4096
LIMIT_BYTES = 32 * 2**30
"""Bytes of all prepared files in a folder, beyond which those are removed that were not used for longest."""
DAY_S = 86_400
LONGEST_STEM = 200
"""Bytes of a file's name, which others extend: that of its lock and that under which it is written."""


class Header(NamedTuple):
    """The first page of a prepared file, as JSON. Labels (int64) follow, and on new pages the pixels."""

    format: int
    content: str  # digest of all that the pixels depend on
    shape: list[int]  # N, C, H, W
    channels_last: bool  # the order of an image's pixels
    crc: int  # of the header with a 0 here, the labels and the pixels

    @property
    def first_pixel(self) -> int:
        """Where the pixels begin, bytes."""
        return PAGE + -(-8 * self.shape[0] // PAGE) * PAGE

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.first_pixel + math.prod(self.shape)


class PreparedFolder:
    """Decoded images by name, each in a file of its own.

    A file whose images were made from something else than is asked for now, or that is damaged, is made
    anew in its place. Where a file cannot be written, images are decoded at every start.

    Args:
        folder: where; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @property
    def checksums(self) -> Path | None:
        """Where checksums of files are remembered."""
        return self.folder and self.folder / "verified.json"

    def images(
        self,
        name: str,
        content: Mapping[str, Any],
        make: Callable[[], tuple[Tensor, Tensor]],
        *,
        channels_last: bool,
    ) -> MemoryImages:
        """Return kept images, or make and keep them; of several processes one makes them.

        Args:
            name: of the file; one for each thing that is wanted again.
            content: all that the images depend on, in plain values.
            make: gives images (N, C, H, W) uint8 and labels (N,) long.
            channels_last: keep and yield them in that memory order.
        """
        if self.folder is None:
            return MemoryImages(*make(), channels_last=channels_last)
        stem = f"{short_name(name, LONGEST_STEM)}{'-channels_last' if channels_last else ''}"
        file = self.folder / f"{stem}{SUFFIX}"
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        if (kept := self._kept(file, digest)) is not None:
            return kept
        with _locked(file) as writable:
            if writable and (kept := self._kept(file, digest)) is not None:  # another process made it
                return kept
            images = MemoryImages(*make(), channels_last=channels_last)
            if writable and _keep(file, images, digest):
                return self._kept(file, digest) or images
        return images

    def _kept(self, file: Path, content: str) -> MemoryImages | None:
        """Map a file, if it is there, undamaged, and of this content."""
        try:
            if not file.is_file():
                return None
            header = _read_header(file)
            if header is None:
                problem = "damaged"
            elif (header.format, header.content) != (FORMAT, content):
                problem = "of other or older images"
            elif file.stat().st_size != header.size:
                problem = "cut short"
            elif digest_of(file, _crc, self.checksums) != str(header.crc):
                problem = "damaged"
            else:
                return _mapped(file, header)
        except OSError as error:
            problem = f"not readable ({error})"
        log.info("%s is %s: its images are decoded anew", file, problem)
        return None


def _mapped(file: Path, header: Header) -> MemoryImages:
    facts = file.stat()
    if time.time() - facts.st_atime > DAY_S:  # file systems may not keep the time of the last use
        with suppress(OSError):
            os.utime(file, ns=(time.time_ns(), facts.st_mtime_ns))
    count, channels, height, width = header.shape
    labels = torch.from_numpy(np.fromfile(file, dtype="<i8", count=count, offset=PAGE))
    pixels = map_bytes(file, header.first_pixel, math.prod(header.shape))
    if header.channels_last:
        images = pixels.view(count, height, width, channels).permute(0, 3, 1, 2)
    else:
        images = pixels.view(count, channels, height, width)
    return MemoryImages(images, labels, channels_last=header.channels_last, mapped=True)


def _page(header: Header) -> bytes:
    return json.dumps(header._asdict()).encode().ljust(PAGE, b"\0")


def _read_header(file: Path) -> Header | None:
    with file.open("rb") as stream:
        page = stream.read(PAGE)
    try:
        header = Header(**json.loads(page.rstrip(b"\0")))
    except (ValueError, TypeError):
        return None
    return header if isinstance(header.shape, list) and len(header.shape) == 4 else None


def _crc(file: Path) -> str:
    """CRC-32 of header, labels and pixels, as a word."""
    header = _read_header(file)
    found = zlib.crc32(_page(header._replace(crc=0))) if header else 0
    with file.open("rb") as stream:
        stream.seek(PAGE)
        while part := stream.read(2**24):
            found = zlib.crc32(part, found)
    return str(found)


@contextmanager
def _locked(file: Path) -> Iterator[bool]:
    """Be the only process that makes `file`. Yields whether it can be written at all."""
    with ExitStack() as stack:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(file.with_name(f".{file.name}.lock")))
            writable = True
        except (OSError, NotImplementedError) as error:  # the latter where there are no locks
            _say_not_kept(file, error)
            writable = False
        yield writable


def _keep(file: Path, images: MemoryImages, content: str) -> bool:
    """Write a file, all or nothing; say why if that is not possible."""
    rows = images.to_rows(images.images).numpy().data
    labels = images.labels.numpy().astype("<i8").tobytes()
    shape = [len(rows), *images.shape]
    header = Header(FORMAT, content, shape, images.channels_last, crc=0)
    labels += bytes(header.first_pixel - PAGE - len(labels))
    header = header._replace(crc=zlib.crc32(rows, zlib.crc32(labels, zlib.crc32(_page(header)))))
    staging = file.with_name(f".{file.name}.new")  # the lock is held: nobody else writes it
    try:
        _make_room(file, header.size)
        with staging.open("wb") as stream:
            stream.write(_page(header))
            stream.write(labels)
            stream.write(rows)
            stream.flush()
            os.fsync(stream.fileno())
        staging.replace(file)
    except OSError as error:
        with suppress(OSError):
            staging.unlink()
        _say_not_kept(file, error)
        return False
    return True


def _make_room(file: Path, size: int) -> None:
    """Remove what was not used for longest, beyond `LIMIT_BYTES`.

    Raises:
        OSError: the disk would be nearly full.
    """
    others = sorted(
        (other for other in file.parent.glob(f"*{SUFFIX}") if other != file),
        key=lambda other: other.stat().st_atime,
        reverse=True,
    )
    total = size
    for other in others:
        total += other.stat().st_size
        if total > LIMIT_BYTES:
            other.unlink(missing_ok=True)
    free = shutil.disk_usage(file.parent).free
    if free < 2 * size:
        raise OSError(f"{size / 1e6:,.1f} MB needed, only {free / 1e6:,.1f} MB free")


def _say_not_kept(file: Path, reason: object) -> None:
    log.info(
        "paths.prepared=%s: decoded images cannot be kept (%s), so they are decoded at every start",
        file.parent,
        reason,
    )
