"""The page around a report: one document with its style and its script, which needs no network."""

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

from project.reporting.html.html import Markup, element, join

PREFIX = re.compile(r"^\[[\d\-:, ]+\]\[INFO\]\[[\w.]+\] ")
"""Of lines in a log that tell of nothing unusual."""


class Section(NamedTuple):
    """A part of a page with a heading.

    Args:
        title: its heading, and its place in the list of contents.
        content: what stands below; None leaves the section out.
    """

    title: str
    content: Markup | None


def page(title: str, above: Markup, sections: Sequence[Section], footer: str) -> str:
    """A whole document.

    Args:
        title: of the window.
        above: what stands above the list of contents: heading and summary.
        sections: in their order.
        footer: a last line.
    """
    shown = [section for section in sections if section.content]
    identifiers = [_identifier(section.title) for section in shown]
    contents = element(
        "nav",
        [
            element("a", section.title, href=f"#{name}")
            for section, name in zip(shown, identifiers, strict=True)
        ],
        aria_label="Contents",
    )
    body = [
        element("section", element("h2", section.title), section.content, id=name)
        for section, name in zip(shown, identifiers, strict=True)
    ]
    style, script = _resource("style.css"), _resource("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(style)),
    )
    whole = element(
        "body",
        element("header", above),
        contents,
        element("main", body),
        element("footer", footer),
        element("div", id="tip", hidden=True),
        element("script", Markup(script)),
    )
    return f"<!doctype html>\n{element('html', head, whole, lang='en')}\n"


def _resource(name: str) -> str:
    return files("project.reporting.html").joinpath(name).read_text(encoding="utf-8")


def _identifier(title: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in title.lower())


def log_section(text: str, *, opened: bool, most: int = 80) -> Markup | None:
    """The end of a log, folded unless it tells of a failure."""
    lines = [PREFIX.sub("", line.rstrip()) for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    title = "The log" if len(lines) <= most else f"The last {most} lines of the log"
    return element(
        "details", element("summary", title), element("pre", "\n".join(lines[-most:])), open=opened
    )


def heading(kind: str, name: str, state: Markup, where: str) -> Markup:
    """What stands at the top of a page."""
    return join(
        element("p", element("span", kind, class_="kind"), " ", state, class_="above"),
        element("h1", name),
        element("p", element("code", where), class_="where"),
    )
