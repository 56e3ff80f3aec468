"""Text for terminals: one table, one error block and one block of facts for every command.

All functions return text. Text for a terminal has colours, drawn by rich; text for a file, a pipe or a log,
and all text while `NO_COLOR` is set, has no escape codes. Only coloured text imports rich.

    print(table(["model", Column("val/acc")], [["cnn", "0.9871"]]))
"""

import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from project.runtime.text import KeptPart, columns_of, shorten

Line = list[tuple[str, str]]
"""Pieces of text, each with its style."""
GAP = "  "
LEAST_WIDTH = 8
"""Columns of a terminal to which a cell is shortened at most."""
NUMBER = re.compile(
    r"[+-]?(\d[\d,]*\.?\d*|\.\d+)(e[+-]?\d+)?( ?(%|s|min|h|ms|MB))?( ?± ?[\d.e+-]+)?|nan|inf|–|"
)
"""A cell that is right-aligned: a number with its unit and deviation, or none."""
STATE_STYLES = {
    "done": "green",
    "running": "cyan",
    "interrupted": "yellow",
    "pruned": "yellow",
    "failed": "bold red",
}
"""By the text of a cell."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        title: heading.
        right: align to the right (None: where every cell is a number).
        keep: part of a cell that stays where the cell is shortened.
        fixed: never shorten the cells (columns of numbers never are).
    """

    title: str
    right: bool | None = None
    keep: KeptPart = "ends"
    fixed: bool = False


def has_color(stream: TextIO | None = None) -> bool:
    """Return true for a terminal that takes colours [standard output]."""
    stream = sys.stdout if stream is None else stream
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return not plain and stream is not None and stream.isatty()


def terminal_width() -> int:
    """Return the columns of the terminal, of `COLUMNS`, or 80."""
    return shutil.get_terminal_size().columns


def table(
    columns: Sequence[str | Column],
    rows: Sequence[Sequence[object]],
    *,
    width: int | None = None,
    color: bool | None = None,
    indent: int = 0,
) -> str:
    """Lay out rows below their headings, numbers right-aligned, the widest cells shortened to fit.

    Args:
        columns: headings, or columns with options.
        rows: as many cells each; None is an empty cell.
        width: columns of the terminal to fit (the terminal's own).
        color: draw headings and states in colours (where standard output takes them).
        indent: spaces before each line.

    Returns:
        Lines without a line break at the end.
    """
    heads = [Column(column) if isinstance(column, str) else column for column in columns]
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    numeric = [all(NUMBER.fullmatch(row[place]) for row in cells) for place in range(len(heads))]
    right = [
        numbers if head.right is None else head.right for head, numbers in zip(heads, numeric, strict=True)
    ]
    flexible = [place for place, head in enumerate(heads) if not head.fixed and not numeric[place]]
    every = [[head.title for head in heads], *cells]
    widths = [max(columns_of(row[place]) for row in every) for place in range(len(heads))]
    room = (terminal_width() if width is None else width) - indent - len(GAP) * (len(widths) - 1)
    _narrow(widths, flexible, room)
    lines: list[Line] = []
    for number, row in enumerate(every):
        line: Line = [(" " * indent, "")]
        for cell, most, head, at_end in zip(row, widths, heads, right, strict=True):
            style = STATE_STYLES.get(cell, "") if number else "bold"
            line += [(_pad(shorten(cell, most, keep=head.keep), most, right=at_end), style), (GAP, "")]
        lines.append(line)
    return _render(lines, has_color() if color is None else color)


def error_block(message: str, *, color: bool | None = None) -> str:
    """Return the lines of an error, each after `error: `, in colours [if standard error has them]."""
    lines: list[Line] = []
    for line in message.splitlines() or [""]:
        key, separator, rest = line.partition(": ")
        lines.append([("error: ", "bold red"), (key, "bold" if separator else ""), (separator + rest, "")])
    return _render(lines, has_color(sys.stderr) if color is None else color)


def fact_block(facts: Mapping[str, str], *, color: bool | None = None, indent: int = 2) -> str:
    """Return one line a fact, its name first, in colours [if standard output has them]."""
    most = max(map(columns_of, facts), default=0)
    lines = [[(" " * indent + _pad(name, most), "cyan"), (GAP + text, "")] for name, text in facts.items()]
    return _render(lines, has_color() if color is None else color)


def _narrow(widths: list[int], flexible: Sequence[int], room: int) -> None:
    """Narrow the widest of the columns that may be shortened until all fit."""
    while flexible and sum(widths) > room:
        widest = max(flexible, key=lambda place: widths[place])
        if widths[widest] <= LEAST_WIDTH:
            break
        widths[widest] -= 1


def _pad(text: str, width: int, *, right: bool = False) -> str:
    spaces = " " * (width - columns_of(text))
    return spaces + text if right else text + spaces


def _render(lines: Iterable[Line], color: bool) -> str:
    """Join lines, with a terminal's escape codes if `color` is set."""
    if not color:
        return "\n".join("".join(text for text, _ in line).rstrip() for line in lines)
    from rich.console import Console
    from rich.text import Text

    console = Console(force_terminal=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(Text("\n").join(Text.assemble(*line) for line in lines), end="")
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
