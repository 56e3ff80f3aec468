"""Run folders that this process makes, and removes again where they came to nothing."""

import os
import shutil
from collections.abc import Iterable
from itertools import chain, count
from pathlib import Path

from project.config.allowed_targets import ADDRESS
from project.errors import InputError
from project.runtime.files import reason_of
from project.runtime.write_probe import probe, remove_empty

MOST_ATTEMPTS = 100
"""Times that a folder's parent may be removed by others before the folder counts as impossible to make."""

_made_above: dict[Path, list[Path]] = {}
"""For each folder that this process claimed, those that it made above it, the nearest first."""


def claimed() -> Iterable[Path]:
    """Folders that this process has made and not discarded."""
    return tuple(_made_above)


def discard(path: Path) -> None:
    """Remove a folder that came to nothing, and those that were made for it and hold nothing else.

    Does nothing unless this process's `claim` made it: whatever else is there is not ours to remove.
    """
    if (above := _made_above.pop(path.absolute(), None)) is None:
        return
    shutil.rmtree(path, ignore_errors=True)
    remove_empty(above)  # others may use them by now


def next_free(wanted: Path) -> Path:
    """The folder that `claim` would make now."""
    if wanted.name in ("", ".."):  # which it refuses
        return wanted
    numbered = (wanted.with_name(f"{wanted.name}-{number}") for number in count(2))
    return next(path for path in chain([wanted], numbered) if not os.path.lexists(path))


def claim(wanted: str | Path, key: str = "paths.outputs") -> Path:
    """Make a new folder of this name, with -2, -3, … behind it where other runs were first.

    Creating a folder either succeeds or fails as a whole, on network file systems too: two runs that start
    in the same instant get two folders.

    Args:
        wanted: the folder.
        key: by which the user chose it.

    Raises:
        InputError: the name is none for a new folder, or it cannot be made or written to; nothing is left of
            it.
    """
    wanted = Path(wanted)
    if ADDRESS.match(str(wanted)):
        raise InputError(f"{key}: {wanted} is an address; runs are written to disks alone, give a folder")
    if wanted.name in ("", ".."):
        raise InputError(
            f"{wanted}: no folder of a run's own; give hydra.run.dir (or hydra.sweep.dir) a new name, as in "
            "hydra.run.dir=outputs/trial"
        )
    above = [parent for parent in wanted.absolute().parents if not os.path.lexists(parent)]
    try:
        for attempt in count(1):
            try:
                wanted.parent.mkdir(parents=True, exist_ok=True)
                return _make_new(wanted, above)
            except FileNotFoundError:  # another run that came to nothing has just removed a parent
                if attempt == MOST_ATTEMPTS:  # or a file system such as /proc, which takes no new folders
                    raise
    except OSError as error:
        remove_empty(above)
        raise InputError(
            f"{key}: cannot make the run folder {wanted} ({reason_of(error)}); set {key} to "
            "a folder that you may write to, on a disk that is not full"
        ) from error
    raise AssertionError("unreachable")


def _make_new(wanted: Path, above: list[Path]) -> Path:
    for number in count(1):
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        try:
            probe(path)
        except OSError:
            remove_empty([path])
            raise
        _made_above[path.absolute()] = above
        return path
    raise AssertionError("unreachable")
