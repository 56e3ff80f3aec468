"""HTML from nested calls: what is put in is escaped, what comes out is balanced."""

import html
import re
from collections.abc import Iterable
from typing import Any

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Sequences that colour a terminal, and characters that no document may hold."""
EMPTY = frozenset({"br", "col", "hr", "img", "input", "link", "meta"})
"""Elements without content and end."""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """A text as HTML; HTML stays as it is."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(CONTROL.sub("", str(text))))


def join(*content: Any) -> Markup:
    """Put contents one behind the other: texts, HTML, numbers, iterables of these; None is nothing."""
    return Markup("".join(_pieces(content)))


def _pieces(content: Iterable[Any]) -> Iterable[str]:
    for item in content:
        if item is None:
            continue
        if isinstance(item, str) or not isinstance(item, Iterable):
            yield escape(item)
        else:
            yield from _pieces(item)


def element(name: str, /, *content: Any, **attributes: Any) -> Markup:
    """An element with its content.

    Args:
        name: of the element.
        content: as `join` takes it.
        attributes: `class_` stands for `class`, and `_` within a name for `-`. True is an attribute without a
            value; None and False are none.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in EMPTY:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*content)}</{name}>")


def _attribute(key: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
