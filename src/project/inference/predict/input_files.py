"""Search for the image files to predict. Imports no torch.

Paths are strings: for a million files, making `Path`s takes longer than the search.
"""
# ruff: noqa: PTH111, PTH112, PTH119, PTH207

import glob
import os
from collections.abc import Sequence
from functools import cache

from project.datamodules.storage.image_files import UNIMPORTANT, ImageWalk, PassedOver, require_regular
from project.errors import InputError
from project.runtime.text import printable


def find_files(inputs: Sequence[str]) -> tuple[list[str], list[PassedOver]]:
    """Find the files that the inputs name.

    Folders are searched recursively for image files, as in training (see `ImageWalk`). A file named directly
    is taken whatever its suffix.

    Args:
        inputs: files, folders and patterns such as `photos/**/*.jpg`.

    Returns:
        The files, each once even if several inputs lead to it, and what was skipped: other files, broken
        links, pipes, unreadable folders.

    Raises:
        InputError: an input is missing, or a pattern matches nothing.
    """
    files: dict[str, None] = {}
    skipped: list[PassedOver] = []
    for text in inputs:
        for path in _matches(text):
            for entry in ImageWalk(path).find(path) if os.path.isdir(path) else [require_regular(path)]:
                if not isinstance(entry, PassedOver):
                    files[entry] = None
                elif entry.reason not in UNIMPORTANT:
                    skipped.append(entry)
    if len(inputs) == 1 and not glob.has_magic(inputs[0]):
        return list(files), skipped
    resolve = cache(os.path.realpath)
    once: dict[tuple[str, str], str] = {}
    for file in files:
        once.setdefault((resolve(os.path.dirname(file)), os.path.basename(file)), file)
    return list(once.values()), list(dict.fromkeys(skipped))


def _matches(text: str) -> list[str]:
    """Return the paths that an input names; an existing path is meant literally, brackets included."""
    path = os.path.expanduser(text)
    if os.path.lexists(path):
        return [path]
    if not glob.has_magic(path):
        raise InputError(f"input={printable(text)}: no such file or folder; see whether it was moved")
    if not (found := sorted(glob.glob(path, recursive=True))):
        raise InputError(
            f"input={printable(text)}: no file matches; ** stands for any folders, * for any name"
        )
    return found
