"""Options of `scripts/predict.py`, and the image files that they name. Imports no torch.

Paths are strings: for a million files, making `Path`s takes longer than the search.
"""
# ruff: noqa: PTH111, PTH112, PTH119, PTH207

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from project.config.command_options import option
from project.datamodules.storage.image_files import UNIMPORTANT, ImageWalk, SkippedFile, require_regular
from project.errors import InputError
from project.inference.choices import Accelerator, Tta
from project.inference.predict.writers import SCREEN, Format
from project.runs.find import LAST
from project.runtime.text import printable

EXAMPLES = """\
examples:
  python scripts/predict.py input=photos
  python scripts/predict.py run=outputs/sweep/2026-01-31_09-30-00 input=a.jpg,b.png
  python scripts/predict.py input='photos/**/*.jpg' output=photos.csv sheet=photos.png
  python scripts/predict.py input=photos format=jsonl | jq .class
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Predict the classes of image files with a trained network.

    Images of any size and mode are scaled and normalized as in training. Damaged
    files are listed on standard error and skipped. Exit codes: 0 done, 2 wrong
    input, 3 no file could be predicted.
    """

    run: str = option(LAST, "run folder, sweep folder (its best run), or last")
    input: list[str] = option(help="images, folders (searched recursively), patterns: a.jpg,photos,'*/*.png'")
    format: Format | None = option(None, "output format; null: by the suffix of the output")
    output: str = option(SCREEN, "output file; -: standard output")
    top_k: int = option(3, "classes for each image, most probable first", least=1)
    sheet: str | None = option(None, "contact sheet of images and their classes to draw: FILE.png")
    tta: Tta | None = option(None, "test-time augmentation; null: as in the run's test")
    weights: str = option("auto", "best, last, previous or a checkpoint; auto: those of the run's test")
    accelerator: Accelerator = option("auto", "device")
    batch_size: int = option(64, "images in a forward pass", least=1)
    num_threads: int | None = option(None, "decoding threads; null: one for each available CPU", least=1)
    outputs: Path = option(Path("outputs"), "folder in which run=last is searched")


def find_files(inputs: Sequence[str]) -> tuple[list[str], list[SkippedFile]]:
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
    skipped: list[SkippedFile] = []
    for text in inputs:
        for path in _matches(text):
            for entry in ImageWalk(path).find(path) if os.path.isdir(path) else [require_regular(path)]:
                if not isinstance(entry, SkippedFile):
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
        raise InputError(f"input={printable(text)}: no such file or folder; check the path")
    if not (found := sorted(glob.glob(path, recursive=True))):
        raise InputError(
            f"input={printable(text)}: no file matches; ** stands for any folders, * for any name"
        )
    return found
