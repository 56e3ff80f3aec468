"""Texts for people: plurals, durations, shortened and printable names. Imports nothing of this package."""

import math
import os
import re
import unicodedata
from collections.abc import Iterable
from typing import Literal

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
MAX_NAME_BYTES = 255
"""Bytes of a file's or folder's name, on nearly all file systems."""

MAX_NAMES = 12
"""Names of which one is to be chosen."""

KeptPart = Literal["start", "end", "ends"]


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: `1 run`, `2 runs`, `1,000 runs`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def duration(seconds: float) -> str:
    """Return a time span such as `4.1 s`, `42 s`, `3 min 20 s` or `5 h 2 min`; nothing for NaN."""
    if math.isnan(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    if minutes:
        return f"{minutes} min {rest} s"
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{rest} s"


def shorten(text: str, width: int, *, keep: KeptPart = "ends") -> str:
    """Return a text in at most `width` columns of a terminal, with an ellipsis in place of the rest.

    `ends` keeps both ends: paths and lists differ least in the middle.
    """
    if columns_of(text) <= width:
        return text
    letters = list(text)
    cut = 0
    while letters and columns_of("".join(letters)) > width - 1:
        cut = {"start": len(letters) - 1, "ends": (len(letters) - 1) // 2, "end": 0}[keep]
        del letters[cut]
    return "".join([*letters[:cut], "…", *letters[cut:]])


def columns_of(text: str) -> int:
    """Return the columns of a terminal that a text takes: two for wide letters, none for combining ones."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


def printable(name: str) -> str:
    """Return a name on one line of a screen; control characters and bytes that are no text are spelt out."""
    return name if name.isprintable() else "".join(map(_escape, name))


def _escape(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8 (PEP 383)
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def name_length(path: str | os.PathLike[str]) -> int:
    """Return the bytes of the longest name in a path."""
    return max(map(len, os.fsencode(path).split(b"/")))


def short_name(name: str, most: int = MAX_NAME_BYTES) -> str:
    """Return a file's name in at most so many bytes: a longer one's beginning, and a digest of all of it."""
    data = os.fsencode(name)
    if len(data) <= most:
        return name
    import hashlib

    begin = data[: most - 9].decode(errors="ignore")  # UTF-8 is cut between characters
    return f"{begin}-{hashlib.sha256(data).hexdigest()[:8]}"


def nearest_names(name: str, known: Iterable[str]) -> list[str]:
    """Return at most three names that resemble one, the nearest first."""
    from difflib import get_close_matches  # of errors alone

    return get_close_matches(name, list(known), n=3)


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return the nearest of the known names, or all if none is near, each after a prefix."""
    candidates = list(dict.fromkeys(str(candidate) for candidate in known))
    if near := nearest_names(name, candidates):
        return f"did you mean {' or '.join(prefix + candidate for candidate in near)}?"
    names = [prefix + candidate for candidate in candidates]
    if len(names) > MAX_NAMES:
        names = [*names[:MAX_NAMES], "…"]
    return f"choose from {', '.join(names)}" if names else "there is nothing to choose from"


def is_numeric(text: str) -> bool:
    """Return true for the text of a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def strip_control(text: str) -> str:
    """Return a text without sequences that colour a terminal and characters that no document may hold."""
    return CONTROL.sub("", text)
