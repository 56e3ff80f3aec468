"""Tests of places for outputs, by writing there. Needs no torch.

Permissions do not tell: the superuser has all of them, and a disk may be full or mounted read-only.
"""

import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from project.config.allowed_targets import ADDRESS
from project.config.validation.command_request import command_request
from project.errors import InputError
from project.runtime import signals
from project.runtime.files import LONGEST_STEM, reason_of, replacing
from project.runtime.text import LONGEST_NAME, name_length, short_name

PROBE_BYTES = 2**18
"""More than what a run writes before its first step."""


def refuse_unwritable_output(
    given: str, path: Path, *, folder: bool = False, remedy: str = "give one that you may write to"
) -> None:
    """Try an output of a command before the work for it begins, and leave nothing behind.

    Args:
        given: key and path as the user would type them, for the message.
        path: of the file that will be written, its missing parents included.
        folder: the output is a folder, with files in it.
        remedy: end of the message.

    Raises:
        InputError: the output cannot be written.
    """
    if ADDRESS.match(str(path)):
        raise InputError(f"{given}: an address; outputs are written to disks alone, give a path")
    try:
        if path.is_dir() and not folder:
            raise InputError(f"{given}: a folder; name a file")
        if path.exists() and not folder:
            if not os.access(path, os.W_OK):
                raise PermissionError(None, "no permission")
            if not path.is_file():  # a pipe or a device is written to itself
                return
        with missing_folders(path if folder else path.parent, keep=False):
            probe(path if folder else path.parent, "" if folder else path.name)
    except OSError as error:
        raise InputError(f"{given}: cannot be written ({reason_of(error)}); {remedy}") from error


@contextmanager
def missing_folders(folder: Path, *, keep: bool = True) -> Iterator[None]:
    """Make a folder and those above it, and remove those that are empty still if an error comes.

    A signal raises `Stopped` within, so that nothing stays behind that is made half.

    Args:
        folder: wanted; one that is there stays.
        keep: the new folders, where no error comes.

    Raises:
        OSError: the folder cannot be made.
    """
    missing = [one for one in (folder, *folder.absolute().parents) if not os.path.lexists(one)]
    with signals.listening():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield
        except BaseException:
            keep = False
            raise
        finally:
            if not keep:
                remove_empty(missing)


@contextmanager
def whole_file(file: Path, *, keep: bool = False) -> Iterator[Path]:
    """Yield the place to write a command's output atomically, with the folders that it lacks.

    What is no regular file, such as a pipe, is written to itself; a link stays one.

    Args:
        file: to be written.
        keep: leave what was written before an error; see `outages.replacing`.

    Raises:
        OSError: it cannot be written.
    """
    if file.exists() and not file.is_file():
        yield file
        return
    target = file.resolve() if file.is_symlink() else file
    with missing_folders(target.parent), replacing(target, keep=keep) as partial:
        yield partial


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, given with the innermost first, but for those that hold something or are not there."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def probe(folder: Path, name: str = "") -> None:
    """Write a small file into a folder, and remove it.

    Args:
        folder: to write to.
        name: of the file that will be written there; the small one's is about as long.

    Raises:
        OSError: that cannot be done.
    """
    if name_length(name) > LONGEST_NAME:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(folder / name))
    file = folder / f".{short_name(name, LONGEST_STEM)}.{secrets.token_hex(8)}.probe"
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
    are decoded at every start. A folder that the command line names must be possible to make.

    Args:
        config: of the run.
    """
    prepared, data, own = (_value(config, key) for key in ("data.image_cache", "paths.data", "data.path"))
    problems = list(_unusable("paths.data", Path(data), made=True)) if data and own == data else []
    yield from problems
    if prepared and not problems:
        yield from _unusable(
            "paths.image_cache", Path(prepared), made="paths.image_cache" in command_request(config).keys
        )


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
            other = ", or one that holds the data set" if key == "paths.data" else ", or null"
            yield (
                f"{key}={path}: cannot be made ({reason_of(error)}); give a folder that you may "
                f"write to{other}"
            )
