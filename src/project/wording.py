"""How figures and names are put into words."""

import os

LONGEST_NAME = 255
"""Bytes of a file's or folder's name, on nearly all file systems."""


def duration(seconds: float) -> str:
    """A time span as people say it, such as `4.1 s`, `3 min 20 s` or `5 h 2 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def printable(text: str) -> str:
    """A text that every encoding of Unicode takes: names of files may hold other bytes."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def shown(name: str) -> str:
    """A file's name on one line of a screen: what would move or colour it, or is no text, is spelt out."""
    return name if name.isprintable() else "".join(map(_spelt, name))


def _spelt(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8 (PEP 383)
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def name_length(path: str | os.PathLike[str]) -> int:
    """Bytes of the longest name in a path."""
    return max(map(len, os.fsencode(path).split(b"/")))


def short_name(name: str, most: int = LONGEST_NAME) -> str:
    """Give a file's name in at most so many bytes: a longer one's beginning, and a digest of all of it."""
    data = os.fsencode(name)
    if len(data) <= most:
        return name
    import hashlib

    begin = data[: most - 9].decode(errors="ignore")  # UTF-8 is cut between characters
    return f"{begin}-{hashlib.sha256(data).hexdigest()[:8]}"
