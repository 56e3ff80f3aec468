"""Output files of commands: checked before the work by writing a probe, and written atomically.

Permissions prove little: root has all of them, and a disk may be full or read-only. A command may replace its
own earlier outputs, which it recognizes, but no other files.
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
"""Size of the probe, more than a run writes before its first step."""
MADE_BY = "made by project"
"""Mark in the metadata of images, which viewers do not show."""
IMAGE = re.compile(rb".*" + MADE_BY.encode(), re.DOTALL)
"""Content of an image that this program wrote."""
MAX_COMPARED_BYTES = 2**24
"""Bytes of a file that are compared with the pattern."""


def refuse_unwritable_output(
    given: str, path: Path, *, folder: bool = False, remedy: str = "give one that you may write to"
) -> None:
    """Refuse an output that cannot be written; the probe leaves nothing behind.

    Args:
        given: key and path as the user types them.
        path: file to be written; its folders may be missing.
        folder: the output is a folder [a file].
        remedy: advice at the end of the message.

    Raises:
        InputError: the output cannot be written.
    """
    if URL.match(str(path)):
        raise InputError(f"{given}: a URL, but outputs are written to local files only; give a path")
    try:
        if path.is_dir() and not folder:
            raise InputError(f"{given}: is a folder; give a file name")
        try_write(path, folder=folder)
    except OSError as error:
        raise InputError(f"{given}: cannot be written ({reason_of(error)}); {remedy}") from error


def try_write(path: Path, *, folder: bool = False) -> None:
    """Write a probe next to an output, and remove the probe and the folders made for it."""
    if path.exists() and not folder:
        if not os.access(path, os.W_OK):
            raise PermissionError(None, "no permission")
        if not path.is_file():  # a pipe or a device is written directly
            return
    with missing_folders(path if folder else path.parent, keep=False):
        probe(path if folder else path.parent, "" if folder else path.name)


def probe(folder: Path, name: str = "") -> None:
    """Write a probe into a folder and remove it; the name of the probe is about as long as `name`."""
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
            os.close(descriptor)  # some file systems report an exceeded quota here
    finally:
        file.unlink()


@contextmanager
def missing_folders(folder: Path, *, keep: bool = True) -> Iterator[None]:
    """Make a folder and its parents; after an error, or without `keep`, remove the empty ones.

    A signal raises `Stopped` within the block, so that the folders are removed.
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
    """Yield a temporary path for a command's output, which replaces the output atomically at the end.

    Missing folders are made. A pipe or a device is written directly; a link is followed.
    """
    if file.exists() and not file.is_file():
        yield file
        return
    target = file.resolve() if file.is_symlink() else file
    with missing_folders(target.parent), atomic_replacement(target) as partial:
        yield partial


@contextmanager
def output_file(given: str, file: Path, remedy: str = "give one that you may write to") -> Iterator[Path]:
    """Yield a temporary path for an output, as `atomic_output` does, with errors for users.

    Raises:
        InputError: the output cannot be written.
    """
    try:
        with atomic_output(file) as partial:
            yield partial
    except OSError as error:
        raise InputError(f"{given}: cannot be written ({reason_of(error)}); {remedy}") from error


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove the empty ones of some folders, given innermost first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def refuse_foreign_file(given: str, file: Path, kind: re.Pattern[bytes]) -> None:
    """Refuse to replace a file that is neither empty nor an earlier output, by its first bytes.

    Raises:
        InputError: the file is not an earlier output.
    """
    if file.is_file() and not is_earlier_output(file, kind):
        raise InputError(
            f"{given}: already exists, and is not an earlier output of this kind; give another "
            "name, or remove it"
        )


def is_earlier_output(file: Path, kind: re.Pattern[bytes]) -> bool:
    """Return True for a file that is empty or whose beginning matches a pattern."""
    try:
        with file.open("rb") as stream:
            start = stream.read(MAX_COMPARED_BYTES)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); give another name") from error
    return not start or kind.match(start) is not None
