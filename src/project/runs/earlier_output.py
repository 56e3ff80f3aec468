"""Recognition of earlier outputs of this program, which may be replaced; other files may not."""

import re
from pathlib import Path

from project.errors import InputError

METRICS = re.compile(rb"step,[^\n]*\b(train|val|test)/")
LOG = re.compile(rb"\[\d{4}-\d\d-\d\d [\d:,]+\]\[[A-Z]+\]\[")
COMPARISON = re.compile(rb"rank,(n,unfinished|folder,state)\b")
PAGE = re.compile(rb'<!doctype html>\n<html[^>]*><head><meta[^>]*><meta http-equiv="Content-Security-Policy"')
PROFILE = re.compile(rb"(FIT|VALIDATE|TEST|PREDICT) Profiler Report")
PREDICTIONS = {
    "table": re.compile(rb"file\b[^\n]*\bclass +probability"),
    "csv": re.compile(rb"file,class,probability\b"),
    "json": re.compile(rb'\[\n\{"file": |\[\]\n'),
    "jsonl": re.compile(rb'\{"file": '),
}
MADE_BY = "made by project"
"""Mark in the metadata of images, which no viewer shows."""
PICTURE = re.compile(rb".*" + MADE_BY.encode(), re.DOTALL)
MAX_BYTES = 2**24
"""Bytes of a file that are compared."""


def refuse_foreign(given: str, file: Path, kind: re.Pattern[bytes]) -> None:
    """Refuse to replace a file, unless it is empty or an earlier output of the same kind.

    Args:
        given: key and file as the user would type them.
        file: output to be written; a pipe or a device may be.
        kind: pattern of the beginning of files of this kind.

    Raises:
        InputError: the file is another one.
    """
    if file.is_file() and not is_earlier(file, kind):
        raise InputError(
            f"{given}: is there already, and is no earlier output of this kind; give another name, or remove "
            "it"
        )


def is_earlier(file: Path, kind: re.Pattern[bytes]) -> bool:
    """Return true for a file that is empty or begins as those of a kind do.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(MAX_BYTES)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); give another name") from error
    return not start or kind.match(start) is not None
