"""Which files are to be predicted. Needs no torch.

Paths are texts: of a million files, making `Path`s takes longer than finding them.
"""
# ruff: noqa: PTH111, PTH112, PTH119, PTH207

import glob
import os
from collections.abc import Sequence
from functools import cache

from project.datamodules.storage.image_files import UNIMPORTANT, ImageWalk, PassedOver, judge
from project.errors import InputError
from project.runtime.text import shown


def find_files(inputs: Sequence[str]) -> tuple[list[str], list[PassedOver]]:
    """Find the files that some inputs mean.

    Of a folder, the image files in it and below it, as training finds them (see `ImageWalk`). A file that is
    named itself is taken whatever it is called.

    Args:
        inputs: files, folders and patterns such as `photos/**/*.jpg`.

    Returns:
        The files, each once, also where several inputs lead to it, and what is none: other files, links to
        nothing, pipes, folders that cannot be read.

    Raises:
        InputError: an input is not there, or a pattern matches nothing.
    """
    files: dict[str, None] = {}
    passed_over: list[PassedOver] = []
    for text in inputs:
        for path in _matches(text):
            found = ImageWalk(path).find(path) if os.path.isdir(path) else [judge(path)]
            for entry in found:
                if not isinstance(entry, PassedOver):
                    files[entry] = None
                elif entry.reason not in UNIMPORTANT:
                    passed_over.append(entry)
    if len(inputs) == 1 and not glob.has_magic(inputs[0]):
        return list(files), passed_over
    real = cache(os.path.realpath)
    once: dict[tuple[str, str], str] = {}
    for file in files:
        once.setdefault((real(os.path.dirname(file)), os.path.basename(file)), file)
    return list(once.values()), list(dict.fromkeys(passed_over))


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
