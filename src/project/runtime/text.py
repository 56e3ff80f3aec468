"""Text for users: plurals, durations, shortened and printable names. Imports no other module of `project`."""

import math
import os
import re
import unicodedata
from collections.abc import Iterable
from typing import Literal

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
MAX_NAME_BYTES = 255
"""Longest name of a file or folder on nearly all file systems [bytes]."""

MAX_NAMES = 12
"""Most names that a message lists."""

KeptPart = Literal["start", "end", "ends"]


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: `1 run`, `2 runs`, `1,000 runs`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def duration(seconds: float) -> str:
    """Return a duration such as `4.1 s`, `42 s`, `3 min 20 s` or `5 h 2 min`; empty for NaN."""
    if math.isnan(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    if minutes:
        return f"{minutes} min {rest} s"
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{rest} s"


def shorten(text: str, width: int, *, keep: KeptPart = "ends") -> str:
    """Shorten a string to at most `width` terminal columns, with an ellipsis for the omitted part.

    Args:
        text: text on one line.
        width: terminal columns.
        keep: part that remains. `ends` keeps both ends, as paths and lists differ least in the middle.
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
    """Return the width of a string in terminal columns: two for wide letters, none for combining ones."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


def printable(name: str) -> str:
    """Return a name in printable characters; control characters and undecodable bytes are escaped."""
    return name if name.isprintable() else "".join(map(_escape, name))


def _escape(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8 (PEP 383)
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def name_length(path: str | os.PathLike[str]) -> int:
    """Return the length of the longest name in a path [bytes]."""
    return max(map(len, os.fsencode(path).split(b"/")))


def short_name(name: str, most: int = MAX_NAME_BYTES) -> str:
    """Shorten a file name to `most` bytes: its start, and a digest of the full name."""
    data = os.fsencode(name)
    if len(data) <= most:
        return name
    import hashlib

    begin = data[: most - 9].decode(errors="ignore")  # drop a truncated UTF-8 character
    return f"{begin}-{hashlib.sha256(data).hexdigest()[:8]}"


def nearest_names(name: str, known: Iterable[str]) -> list[str]:
    """Return at most three similar names, the nearest first."""
    from difflib import get_close_matches  # only errors need it

    return get_close_matches(name, list(known), n=3)


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return advice with the nearest known names, or with all if none is near; each gets a prefix."""
    candidates = list(dict.fromkeys(str(candidate) for candidate in known))
    if near := nearest_names(name, candidates):
        return f"did you mean {' or '.join(prefix + candidate for candidate in near)}?"
    names = [prefix + candidate for candidate in candidates]
    if len(names) > MAX_NAMES:
        names = [*names[:MAX_NAMES], "…"]
    return f"choose from {', '.join(names)}" if names else "there is nothing to choose from"


def is_numeric(text: str) -> bool:
    """Return True if a string is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def strip_control(text: str) -> str:
    """Remove escape sequences of terminals and characters that XML and HTML forbid."""
    return CONTROL.sub("", text)


def percent(fraction: float) -> str:
    """Format a probability as a percentage that is 0 or 100 only if the probability is 0 or 1."""
    if not 0 < fraction < 1:
        return f"{100 * fraction:.0f}\N{NO-BREAK SPACE}%"
    if fraction >= 0.9995:
        return ">\N{NO-BREAK SPACE}99.9\N{NO-BREAK SPACE}%"
    if fraction < 0.0005:
        return "<\N{NO-BREAK SPACE}0.1\N{NO-BREAK SPACE}%"
    decimals = 1 if fraction >= 0.995 or fraction < 0.005 else 0
    return f"{100 * fraction:.{decimals}f}\N{NO-BREAK SPACE}%"


def mistake_text(label: object, prediction: object, probability: float | None) -> str:
    """Return a label, a prediction and its probability in the form that is used everywhere."""
    number = "" if probability is None else f" ({percent(probability)})"
    return f"{label} → {prediction}{number}"
