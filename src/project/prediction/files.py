"""Which files are to be predicted. Needs no torch.

Paths are texts: of a million files, making `Path`s takes longer than finding them.
"""
# ruff: noqa: PTH111, PTH112, PTH114, PTH116, PTH207

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from project.datamodules.folders import ENDINGS
from project.errors import InputError


class PassedOver(NamedTuple):
    """A file that is not predicted, and why."""

    file: str
    reason: str


def find_files(inputs: Sequence[str]) -> tuple[list[str], list[PassedOver]]:
    """Find the files that some inputs mean.

    Of a folder, all files in it and below it, whatever their names, in the order of their paths; hidden ones
    and hidden folders are left out. Links are followed, each folder once.

    Args:
        inputs: files, folders and patterns such as `photos/**/*.jpg`.

    Returns:
        The files, each once, and what cannot be one: links to nothing, pipes, folders that cannot be read.

    Raises:
        InputError: an input is not there, or a pattern matches nothing.
    """
    files: dict[str, None] = {}
    passed_over: list[PassedOver] = []
    for text in inputs:
        for path in _matches(text):
            found = _walk(path) if os.path.isdir(path) else [_judge(path)]
            for entry in found:
                if isinstance(entry, PassedOver):
                    passed_over.append(entry)
                else:
                    files[entry] = None
    return list(files), list(dict.fromkeys(passed_over))


def _matches(text: str) -> list[str]:
    """The paths that an input names. One that is there is meant itself, whatever brackets it has."""
    path = os.path.expanduser(text)
    if os.path.lexists(path):
        return [path]
    if not glob.has_magic(path):
        raise InputError(f"input={shown(text)}: no such file or folder; see whether it was moved")
    if not (found := sorted(glob.glob(path, recursive=True))):
        raise InputError(f"input={shown(text)}: no file matches; ** stands for any folders, * for any name")
    return found


def _judge(path: str) -> str | PassedOver:
    """The path, unless it is known to be no image before it is opened: opening a pipe waits for ever."""
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        return PassedOver(path, "a link to nothing" if os.path.islink(path) else "no such file")
    except OSError as error:
        return PassedOver(path, error.strerror or "cannot be read")
    return path if stat.S_ISREG(kind) else PassedOver(path, "no regular file")


def _walk(folder: str) -> Iterator[str | PassedOver]:
    """Files in a folder and below it, however deep."""
    seen: set[tuple[int, int]] = set()  # device and inode of folders
    waiting = [(folder, False)]  # paths, the next one last, and whether each is known to be a file
    while waiting:
        path, is_file = waiting.pop()
        if is_file:
            yield path
        elif not os.path.isdir(path):
            yield _judge(path)
        else:
            try:
                facts = os.stat(path)
                if (key := (facts.st_dev, facts.st_ino)) in seen:
                    continue
                seen.add(key)
                inside = _inside(path)
            except OSError as error:
                yield PassedOver(path, f"a folder that cannot be read ({error.strerror})")
                continue
            if not inside and path.lower().endswith(ENDINGS):
                yield PassedOver(path, "an empty folder")
            waiting += reversed(inside)


def _inside(folder: str) -> list[tuple[str, bool]]:
    """Paths in a folder, sorted, and whether each is a file for sure; without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(
            (entry.path, entry.is_file(follow_symlinks=False))
            for entry in entries
            if not entry.name.startswith(".")
        )


def shown(name: str) -> str:
    """A file's name on one line of a screen: what would move or colour it, or is no text, is spelt out."""
    return name if name.isprintable() else "".join(map(_spelt, name))


def _spelt(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8 (PEP 383)
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
