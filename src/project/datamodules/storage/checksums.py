"""Digests of files, computed once for each state of a file and remembered for later processes."""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from project.runtime.files import replacing

log = logging.getLogger(__name__)

State = tuple[int, int, int]
"""Size, time of the last change (ns) and inode: what differs after a file was written."""
Entry = tuple[int, int, int, float, str]
"""A state, the time of the last verification (seconds since the epoch), and the digest."""

SETTLED_S = 2
"""Seconds after which a change of a file also changes its time, whatever the file system's clock."""
TRUSTED_S = 7 * 86_400
"""Seconds until an unchanged file is verified again, in the background, as disks may change data."""
CLAIMED_S = 3600
"""Seconds for which other processes leave that verification to the one that began it."""
ABANDONED_S = 3600
"""Seconds after which nobody is still writing a file of a few kilobytes."""


def md5_of(file: Path) -> str:
    """Return the MD5 of a file, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def cached_digest(file: Path, compute: Callable[[Path], str], memory: Path | None = None) -> str:
    """Return the digest of a file, computed if it is not known for the file's present state.

    Args:
        file: must exist.
        compute: reads the whole file.
        memory: JSON file that keeps digests for later processes, where it can be written.
    """
    facts = file.stat()
    return _digest(str(file.absolute()), (facts.st_size, facts.st_mtime_ns, facts.st_ino), compute, memory)


@cache
def _digest(path: str, state: State, compute: Callable[[Path], str], memory: Path | None) -> str:
    now = time.time()
    remembered = _read(memory).get(path, [])
    if memory is None or remembered[:3] != list(state) or len(remembered) != 5:
        digest = compute(Path(path))
        if memory is not None and now - state[1] / 1e9 > SETTLED_S:
            _write(memory, path, (*state, now, digest))
        return digest
    digest = str(remembered[4])
    if not 0 <= now - float(remembered[3]) < TRUSTED_S:
        _write(memory, path, (*state, now - TRUSTED_S + CLAIMED_S, digest))
        again = (path, compute, memory, (*state, now, digest))
        threading.Thread(target=_verify_again, args=again, name="checksum", daemon=True).start()
    return digest


def _verify_again(path: str, compute: Callable[[Path], str], memory: Path, entry: Entry) -> None:
    with suppress(OSError):
        if compute(Path(path)) == entry[-1]:
            _write(memory, path, entry)
        else:
            _write(memory, path, ())
            log.warning(
                "warning: %s is damaged: its content changed though nobody wrote it, and this run may have "
                "used it; the next start repairs it or names the remedy",
                path,
            )


def _read(memory: Path | None) -> dict[str, list[Any]]:
    with suppress(OSError, ValueError):
        found = json.loads(memory.read_text()) if memory else None
        if isinstance(found, dict):
            return {path: entry for path, entry in found.items() if isinstance(entry, list)}
    return {}


def _write(memory: Path, path: str, entry: Entry | tuple[()]) -> None:
    """Add an entry. Where two processes write at once, one entry is lost, and its file is read again."""
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        for left in memory.parent.glob(f".{memory.name}.*.part"):
            if time.time() - left.stat().st_mtime > ABANDONED_S:
                left.unlink(missing_ok=True)
        kept: dict[str, Any] = {known: old for known, old in _read(memory).items() if Path(known).exists()}
        with replacing(memory) as staging:
            staging.write_text(json.dumps(kept | {path: entry}, indent=1))
