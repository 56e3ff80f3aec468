"""Digests of files, computed once for each state of a file and remembered beyond the process."""

import json
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

State = tuple[int, int, int]
"""Size, time of the last change (ns) and inode: what changes when a file does."""
Entry = tuple[int, int, int, float, str]
"""A state, when the file was read last (seconds since the epoch), and its digest."""

SETTLED_S = 2
"""Seconds after which a change of a file surely changes its time too, whatever the file system's clock."""

TRUSTED_S = 7 * 86_400
"""Seconds for which a file that looks unchanged is taken to be so: then it is read once more, beside the
training, for a disk may change what nobody wrote.
"""
CLAIMED_S = 3600
"""Seconds for which other processes leave that to the one that has begun it."""

STAGING = ".staging"
LEFT_S = 3600
"""Seconds after which nobody is still writing a file of a few kilobytes."""

_writing = threading.Lock()
_known: dict[tuple[str, State], str] = {}


def digest_of(file: Path, compute: Callable[[Path], str], memory: Path | None = None) -> str:
    """Return the digest of a file, computed if it is not known of the file as it is now.

    Args:
        file: must exist.
        compute: reads the whole file.
        memory: a JSON file where digests are kept for later processes; not where it cannot be written.
    """
    path = str(file.absolute())
    facts = file.stat()
    state = (facts.st_size, facts.st_mtime_ns, facts.st_ino)
    if (path, state) not in _known:
        remembered = _read(memory).get(path, [])
        if remembered[:3] == list(state) and len(remembered) == 5:
            _known[path, state] = str(remembered[-1])
            age_s = time.time() - float(remembered[3])
            if memory is not None and not 0 <= age_s < TRUSTED_S:
                entry: Entry = (*state, time.time(), _known[path, state])
                _write(memory, {path: _claimed(entry)})
                again = (file, compute, memory, entry)
                threading.Thread(target=_verify_again, args=again, name="checksum", daemon=True).start()
        else:
            _known[path, state] = compute(file)
            if memory is not None and time.time() - facts.st_mtime > SETTLED_S:
                _write(memory, {path: (*state, time.time(), _known[path, state])})
    return _known[path, state]


def _claimed(entry: Entry) -> Entry:
    return (*entry[:3], entry[3] - TRUSTED_S + CLAIMED_S, entry[4])


def _verify_again(file: Path, compute: Callable[[Path], str], memory: Path, entry: Entry) -> None:
    """Read a file whose digest has been trusted for long, and say so if it is not what it was."""
    with suppress(OSError):
        if compute(file) == entry[-1]:
            _write(memory, {str(file.absolute()): entry})
        else:
            _write(memory, {str(file.absolute()): ()})
            log.warning(
                "warning: %s is damaged: its content changed though nobody wrote it, and this run may "
                "have used it; the next start mends it, or says how",
                file,
            )


def _read(memory: Path | None) -> dict[str, list[Any]]:
    with suppress(OSError, ValueError):
        found = json.loads(memory.read_text()) if memory else None
        if isinstance(found, dict):
            return {path: entry for path, entry in found.items() if isinstance(entry, list)}
    return {}


def _write(memory: Path, added: Mapping[str, Entry | tuple[()]]) -> None:
    """Add entries. Of two processes that do so at once one may be forgotten, and verifies once more."""
    with _writing, suppress(OSError):
        kept: dict[str, Any] = {path: entry for path, entry in _read(memory).items() if Path(path).exists()}
        memory.parent.mkdir(parents=True, exist_ok=True)
        _sweep_out(memory)
        # Containers number their processes alike, and several machines may share a data folder.
        staging = memory.with_name(
            f".{memory.name}.{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}{STAGING}"
        )
        try:
            staging.write_text(json.dumps(kept | dict(added), indent=1))
            staging.replace(memory)
        except OSError:
            staging.unlink(missing_ok=True)


def _sweep_out(memory: Path) -> None:
    """Remove what processes that were killed while they wrote have left."""
    for left in memory.parent.glob(f".{memory.name}.*{STAGING}"):
        with suppress(OSError):  # another process is done with it
            if time.time() - left.stat().st_mtime > LEFT_S:
                left.unlink()
