"""Digests of files, computed once for each state of a file and remembered beyond the process."""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

State = tuple[int, int, int]
"""Size, time of the last change (ns) and inode: what changes when a file does."""

SETTLED_S = 2
"""Seconds after which a change of a file surely changes its time too, whatever the file system's clock."""

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
        if remembered[:-1] == list(state):
            _known[path, state] = str(remembered[-1])
        else:
            _known[path, state] = compute(file)
            if memory is not None and time.time() - facts.st_mtime > SETTLED_S:
                _write(memory, {path: [*state, _known[path, state]]})
    return _known[path, state]


def _read(memory: Path | None) -> dict[str, list[object]]:
    with suppress(OSError, ValueError):
        found = json.loads(memory.read_text()) if memory else None
        if isinstance(found, dict):
            return {path: entry for path, entry in found.items() if isinstance(entry, list)}
    return {}


def _write(memory: Path, added: dict[str, list[object]]) -> None:
    """Add entries. Of two processes that do so at once one may be forgotten, and verifies once more."""
    kept = {path: entry for path, entry in _read(memory).items() if Path(path).exists()}
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        staging = memory.with_name(f".{memory.name}.{os.getpid()}")
        staging.write_text(json.dumps(kept | added, indent=1))
        staging.replace(memory)
