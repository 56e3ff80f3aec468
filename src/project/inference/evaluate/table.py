"""What an evaluation shows on the screen, in 80 columns. No torch."""

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

from project.runs.metric_titles import TITLES

WIDTH = 80
MOST_CLASSES = 20
"""That are shown; of more, those with the lowest F1."""
NAME = 25
"""Columns of a class's name."""
FEW = ("accuracy", "loss", "nll", "ece", "macro_f1")
"""Of each of several networks."""


def render_figures(figures: dict[str, Any], notes: dict[str, str]) -> str:
    """A row a figure: its value and its 95 % interval.

    Args:
        figures: `{value, low, high}` by name.
        notes: what to say behind some.
    """
    bounded = any("low" in figure for figure in figures.values())
    lines = [f"{'':26}{'value':>8}{'   95 % interval' if bounded else ''}"]
    for name, title in TITLES.items():
        if (figure := figures.get(name)) is None:
            continue
        ends = f"   {number(figure['low'])} … {number(figure['high'])}" if "low" in figure else ""
        lines.append(f"  {title:24}{number(figure['value']):>8}{ends:20}  {notes.get(name, '')}".rstrip())
    return "\n".join(lines)


def render_classes(classes: Sequence[dict[str, Any]], file: str) -> str:
    """A row a class, the one with the lowest F1 first if not all are shown.

    Args:
        classes: as `record.classes_of` has them.
        file: where all of them stand.
    """
    rows = list(classes)
    bounded = any("low" in row["f1"] for row in rows)
    head = f"  {'class':{NAME}}{'images':>8}{'precision':>11}{'recall':>8}{'F1':>8}"
    lines = [head + ("   95 % interval" if bounded else "")]
    if len(rows) > MOST_CLASSES:
        scored = [row for row in rows if not math.isnan(row["f1"]["value"])]
        rows = sorted(scored, key=lambda row: row["f1"]["value"])[:MOST_CLASSES]
    for row in rows:
        values = [number(row[key]["value"]) for key in ("precision", "recall", "f1")]
        ends = f"   {number(row['f1']['low'])} … {number(row['f1']['high'])}" if bounded else ""
        name = fit(row["class"], NAME)
        lines.append(f"  {name}{row['images']:8,}{values[0]:>11}{values[1]:>8}{values[2]:>8}{ends}".rstrip())
    if len(classes) > len(rows):
        lines.append(f"  the {len(rows)} of {len(classes)} classes with the lowest F1; all are in {file}")
    return "\n".join(lines)


def render_members(rows: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """A row a network: a few figures.

    Args:
        rows: what it is called, and its figures.
    """
    names = ("accuracy", "loss", "NLL", "ECE", "macro F1")
    width = WIDTH - 2 - 9 * len(names)
    lines = [f"  {'':{width}}" + "".join(f"{name:>9}" for name in names)]
    for name, figures in rows:
        values = "".join(f"{number(figures.get(key, {}).get('value', math.nan)):>9}" for key in FEW)
        lines.append(f"  {fit(name, width, keep_end=True)}{values}")
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Four decimals, less where there are many digits before them; a dash for what is not defined."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.5g}"


def fit(text: str, width: int, *, keep_end: bool = False) -> str:
    """A text in exactly so many columns, cut off with an ellipsis where it is wider.

    Args:
        text: of any script; letters that take two columns count as two.
        width: columns.
        keep_end: cut at the beginning.
    """
    text = "".join(letter if letter.isprintable() else "�" for letter in text)
    if columns(text) <= width:
        return text + " " * (width - columns(text))
    letters = list(text)
    while columns("".join(letters)) > width - 1:
        letters.pop(0 if keep_end else -1)
    cut = "".join(letters)
    cut = f"…{cut}" if keep_end else f"{cut}…"
    return cut + " " * (width - columns(cut))


def columns(text: str) -> int:
    """How many columns a terminal takes for a text."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)
