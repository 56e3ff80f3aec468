"""Where an evaluation is written: a folder that is whole or not there. No torch."""

import hashlib
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from project.errors import InputError
from project.runtime.write_probe import missing_folders, refuse_unwritable_output

FOLDER = "evaluation"
RESULT = "evaluation.json"
PREDICTIONS = "predictions.csv"
PICTURES = ("confusion_matrix.png", "reliability.png", "worst_mistakes.png")
LONGEST = 60
"""Characters of a part of a name."""


def name_of(split: str, data: Sequence[str], views: str | None, weights: str) -> str:
    """Name an evaluation by all that makes it another one: `test`, `val-last`, `test-photos-views_flip`.

    Args:
        split: of the data.
        data: overrides that choose other data; where a data set lies makes no other one.
        views: if they are not the run's own.
        weights: `auto`, another name, or a file.
    """
    parts = [split]
    for word in data:
        key, _, value = word.partition("=")
        if key == "data":
            parts.append(value)
        elif key == "data.path":
            parts.append(Path(value).name)
        elif key.startswith("data."):
            parts.append(f"{key.removeprefix('data.')}_{value}")
    if views is not None:
        parts.append(f"views_{views}")
    if weights != "auto":
        parts.append(Path(weights).stem)
    return "-".join(_plain(part) for part in parts)


def name_together(name: str, combined: str, members: Sequence[str]) -> str:
    """Name the evaluation of several networks together: `test-ensemble_of_3-1f09c2`.

    Args:
        name: of what was evaluated.
        combined: how.
        members: the networks; their digest ends the name, so that others have another one.
    """
    digest = hashlib.sha256("\0".join(members).encode(errors="surrogateescape")).hexdigest()[:6]
    return f"{name}-{combined}_of_{len(members)}-{digest}"


def _plain(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", text).strip("._-")[:LONGEST] or "other"


@contextmanager
def replacing(target: Path, *, told: bool) -> Iterator[Path]:
    """Give a new folder to write to; it takes the target's place when all is there, or is gone.

    Args:
        target: the folder that is made, or replaced where it is an earlier evaluation.
        told: the user has named it.

    Raises:
        InputError: it cannot be written to, or it holds something else.
    """
    remedy = "give another folder" if told else "say with output=FOLDER where to write"
    if other := _others(target):
        raise InputError(f"output={target}: holds something else than an evaluation, {other}; {remedy}")
    refuse_unwritable_output(f"output={target}", target, folder=True, remedy=remedy)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    with missing_folders(target.parent):
        try:
            partial.mkdir()
            yield partial
            _take_place(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _others(target: Path) -> str:
    """Name an entry of a folder that is no part of an evaluation; an empty string if there is none."""
    names = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    known = (RESULT, PREDICTIONS, *PICTURES) if RESULT in names else ()
    return next((name for name in names if name not in known), "")


def _take_place(partial: Path, target: Path) -> None:
    """Rename, with the earlier evaluation set aside before: a folder takes no other's name that has files.

    The earlier one is removed when the new one stands in its place; if that cannot be, it is put back.
    """
    while True:
        old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
        with suppress(FileNotFoundError):  # there is none, or another evaluation has set it aside
            target.rename(old)
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():
                with suppress(OSError):
                    old.rename(target)
                raise
            # Another evaluation was first: what it took the place of is older than both.
        shutil.rmtree(old, ignore_errors=True)
        if not partial.exists():
            return
