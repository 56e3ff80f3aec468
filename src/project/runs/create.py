"""New run folders: made, and removed again where nothing came of them."""

import os
import shutil
from collections.abc import Iterable
from itertools import chain, count
from pathlib import Path

from project.errors import InputError
from project.runtime.files import URL, reason_of
from project.runtime.write_probe import probe, remove_empty

MAX_ATTEMPTS = 100
"""Times that other runs may remove a folder's parent before the folder counts as impossible to make."""

_made_above: dict[Path, list[Path]] = {}
"""For each folder that this process made, those that it made above it, the nearest first."""


def created() -> Iterable[Path]:
    """Return the folders that this process made and did not discard."""
    return tuple(_made_above)


def discard(path: Path) -> None:
    """Remove a folder that this process made, and the folders made for it that hold nothing else."""
    if (above := _made_above.pop(path.absolute(), None)) is not None:
        shutil.rmtree(path, ignore_errors=True)
        remove_empty(above)  # others may use them by now


def _names(wanted: Path) -> Iterable[Path]:
    return chain([wanted], (wanted.with_name(f"{wanted.name}-{number}") for number in count(2)))


def next_free(wanted: Path) -> Path:
    """Return the folder that `create_folder` would make now."""
    if wanted.name in ("", ".."):  # which it refuses
        return wanted
    return next(path for path in _names(wanted) if not os.path.lexists(path))


def create_folder(wanted: str | Path, key: str = "paths.outputs") -> Path:
    """Make a new folder of this name, with -2, -3, … behind it where other runs were first.

    Making a folder is atomic, on network file systems, too: two runs that start at once get two folders.

    Args:
        wanted: the folder.
        key: key of the configuration by which the user chose it.

    Raises:
        InputError: the name is none for a new folder, or it cannot be made or written to; nothing is left.
    """
    wanted = Path(wanted)
    if URL.match(str(wanted)):
        raise InputError(f"{key}: {wanted} is an address; runs are written to disks alone, give a folder")
    if wanted.name in ("", ".."):
        raise InputError(
            f"{wanted}: no folder of a run's own; give hydra.run.dir (or hydra.sweep.dir) a new name, as in "
            "hydra.run.dir=outputs/trial"
        )
    above = [parent for parent in wanted.absolute().parents if not os.path.lexists(parent)]
    try:
        path = _make_new(wanted)
    except OSError as error:
        remove_empty(above)
        raise InputError(
            f"{key}: cannot make the run folder {wanted} ({reason_of(error)}); set {key} to "
            "a folder that you may write to, on a disk that is not full"
        ) from error
    _made_above[path.absolute()] = above
    return path


def _make_new(wanted: Path) -> Path:
    for attempt in count(1):
        wanted.parent.mkdir(parents=True, exist_ok=True)
        try:
            path = next(path for path in _names(wanted) if _make(path))
            break
        except FileNotFoundError:  # another run has just removed a parent, or a file system such as /proc
            if attempt == MAX_ATTEMPTS:
                raise
    try:
        probe(path)
    except OSError:
        remove_empty([path])
        raise
    return path


def _make(path: Path) -> bool:
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True
