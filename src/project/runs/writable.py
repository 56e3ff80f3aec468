"""Whether a run's folders can be written to, found out by writing. Needs no torch.

Permissions do not tell: the superuser has all of them, and a disk may be full or mounted read-only.
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from project.runs.outages import reason_of

PROBE_BYTES = 2**18
"""More than what a run writes before its first step."""


def probe(folder: Path) -> None:
    """Write a small file into a folder, and remove it.

    Raises:
        OSError: that cannot be done.
    """
    file = folder / f".probe-{secrets.token_hex(8)}"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            rest = bytes(PROBE_BYTES)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        finally:
            os.close(descriptor)  # where some file systems tell that a quota is used up
    finally:
        file.unlink()


def find_unusable(config: DictConfig) -> Iterator[str]:
    """Yield a line for each folder of a run's data that is none, or that cannot be made.

    Folders that are there need not be writable: a data set may be shared, and images that cannot be kept
    are decoded at every start.

    Args:
        config: of the run.
    """
    prepared, data, own = (_value(config, key) for key in ("data.prepared", "paths.data", "data.path"))
    problems = list(_unusable("paths.data", Path(data), made=True)) if data and own == data else []
    yield from problems
    if prepared and not problems:
        yield from _unusable("paths.prepared", Path(prepared), made=False)


def _value(config: DictConfig, key: str) -> str | None:
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException:  # told by another check
        return None


def _unusable(key: str, path: Path, *, made: bool) -> Iterator[str]:
    """Lines about a folder.

    Args:
        key: of the configuration.
        path: the folder, or where it would be.
        made: the run cannot do without it.
    """
    there = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
    if not there.is_dir():
        what = "a file, not a folder" if there == path else f"{there} is a file, not a folder"
        yield f"{key}={path}: {what}; give another folder"
    elif made and there != path:
        try:
            probe(there)
        except OSError as error:
            yield (
                f"{key}={path}: cannot be made ({reason_of(error)}); give a folder that you may write to, or "
                "one that holds the data set"
            )
