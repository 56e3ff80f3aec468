"""Output paths: tried by writing before the work, made with their folders, written atomically.

Permissions are not enough: the superuser has all of them, and a disk may be full or mounted read-only.
Earlier outputs of this program are recognized and may be replaced; other files may not.
"""

import errno
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from project.errors import InputError
from project.runtime import signals
from project.runtime.atomic_files import MAX_STEM_BYTES, URL, atomic_replacement, reason_of
from project.runtime.text import MAX_NAME_BYTES, name_length, short_name

PROBE_BYTES = 2**18
"""More than a run writes before its first step."""
MADE_BY = "made by project"
"""Mark in the metadata of images, which no viewer shows."""
IMAGE = re.compile(rb".*" + MADE_BY.encode(), re.DOTALL)
"""Start of an image of ours."""
MAX_COMPARED_BYTES = 2**24
"""Bytes of a file that are compared."""


def refuse_unwritable_output(
    given: str, path: Path, *, folder: bool = False, remedy: str = "give one that you may write to"
) -> None:
    """Try to write an output of a command, and remove the traces.

    Args:
        given: key and path as the user would type them.
        path: file to be written; its folders may be missing.
        folder: the output is a folder.
        remedy: end of the message.

    Raises:
        InputError: the output cannot be written.
    """
    if URL.match(str(path)):
        raise InputError(f"{given}: an address; outputs are written to disks alone, give a path")
    try:
        if path.is_dir() and not folder:
            raise InputError(f"{given}: a folder; name a file")
        try_write(path, folder=folder)
    except OSError as error:
        raise InputError(f"{given}: cannot be written ({reason_of(error)}); {remedy}") from error


def try_write(path: Path, *, folder: bool = False) -> None:
    """Write a small file in the place of an output, and remove it with the folders made for it."""
    if path.exists() and not folder:
        if not os.access(path, os.W_OK):
            raise PermissionError(None, "no permission")
        if not path.is_file():  # a pipe or a device is written to itself
            return
    with missing_folders(path if folder else path.parent, keep=False):
        probe(path if folder else path.parent, "" if folder else path.name)


def probe(folder: Path, name: str = "") -> None:
    """Write a small file into a folder, and remove it; its name is about as long as `name`."""
    if name_length(name) > MAX_NAME_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(folder / name))
    file = folder / f".{short_name(name, MAX_STEM_BYTES)}.{secrets.token_hex(8)}.probe"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            rest = bytes(PROBE_BYTES)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        finally:
            os.close(descriptor)  # where some file systems report that a quota is used up
    finally:
        file.unlink()


@contextmanager
def missing_folders(folder: Path, *, keep: bool = True) -> Iterator[None]:
    """Make a folder and those above it; after an error, or without `keep`, remove those that are empty.

    A signal raises `Stopped` within, so that nothing unfinished stays.
    """
    missing = [one for one in (folder, *folder.absolute().parents) if not os.path.lexists(one)]
    with signals.raise_on_signal():
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
def atomic_output(file: Path) -> Iterator[Path]:
    """Yield the path at which to write a command's output, which is replaced atomically at the end.

    Missing folders are made. A pipe or a device is written to itself; a link stays one.
    """
    if file.exists() and not file.is_file():
        yield file
        return
    target = file.resolve() if file.is_symlink() else file
    with missing_folders(target.parent), atomic_replacement(target) as partial:
        yield partial


@contextmanager
def output_file(given: str, file: Path, remedy: str = "give one that you may write to") -> Iterator[Path]:
    """Yield the path at which to write an output, as `atomic_output` does.

    Raises:
        InputError: it cannot be written, where `atomic_output` raises `OSError`.
    """
    try:
        with atomic_output(file) as partial:
            yield partial
    except OSError as error:
        raise InputError(f"{given}: cannot be written ({reason_of(error)}); {remedy}") from error


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, the innermost first, except for those that hold something or do not exist."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def refuse_foreign_file(given: str, file: Path, kind: re.Pattern[bytes]) -> None:
    """Refuse to replace a file, unless it is empty or its beginning matches that of earlier outputs."""
    if file.is_file() and not is_earlier_output(file, kind):
        raise InputError(
            f"{given}: is there already, and is no earlier output of this kind; give another name, or remove "
            "it"
        )


def is_earlier_output(file: Path, kind: re.Pattern[bytes]) -> bool:
    """Return true for a file that is empty or whose beginning matches a pattern."""
    try:
        with file.open("rb") as stream:
            start = stream.read(MAX_COMPARED_BYTES)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); give another name") from error
    return not start or kind.match(start) is not None
