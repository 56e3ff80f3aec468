r"""Cells of CSV files, which spreadsheets take for text and never for a formula; read back as they were.

An escaped cell begins with an apostrophe (CWE-1236), and shows control characters as Python does: `'=1+1`,
`'two\nlines`. So do cells that begin with one by themselves.
"""

import re
from collections.abc import Iterable
from typing import Any

DANGEROUS = re.compile(r"['=+\-@]|.*[\x00-\x1f\x7f-\x9f]", re.DOTALL)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", re.IGNORECASE)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
ESCAPED = re.compile(r"\\(x[0-9a-f]{2}|[\\tnr])")


def escape(value: Any) -> Any:
    """Escape a text that a spreadsheet would not show as it is; numbers and other values stay."""
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    if not DANGEROUS.match(text) or NUMBER.fullmatch(text):
        return text
    return "'" + CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escape_all(values: Iterable[Any]) -> list[Any]:
    """Escape the cells of a row."""
    return list(map(escape, values))


def unescape(cell: str) -> str:
    """The text that was escaped."""
    if not cell.startswith("'"):
        return cell
    return ESCAPED.sub(lambda found: found[0].encode("ascii").decode("unicode_escape"), cell[1:])
