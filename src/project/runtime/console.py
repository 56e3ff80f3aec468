"""Terminal output of all commands: tables, error blocks and blocks of facts.

All functions return text. Text for a terminal has colors, by rich. Text for a file, a pipe or a log has no
escape codes, nor has any text if `NO_COLOR` is set. Rich is imported for colored text only.

    print(table(["model", Column("val/acc")], [["cnn", "0.9871"]]))
"""

import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TextIO

from project.runtime.text import KeptPart, columns_of, shorten

Line = list[tuple[str, str]]
"""Pieces of text with their rich styles."""
GAP = "  "
LEAST_WIDTH = 8
"""Least width to which a column is shortened [terminal columns]."""
NUMBER = re.compile(
    r"[+-]?(\d[\d,]*\.?\d*|\.\d+)(e[+-]?\d+)?( ?(%|s|min|h|ms|MB))?( \d+ (s|min))?( ?± ?[\d.e+-]+)?"
    r"|nan|inf|–|"
)
"""Right-aligned cell: a number with its unit and deviation, a duration, or an empty cell."""
STATE_STYLES = {
    "done": "green",
    "running": "cyan",
    "starting": "cyan",
    "waiting": "dim",
    "interrupted": "yellow",
    "pruned": "yellow",
    "paused": "yellow",
    "eliminated": "yellow",
    "failed": "bold red",
    "dead": "bold red",
    "damaged": "bold red",
}
"""Rich styles by the text of a cell."""
TITLE_STYLE = "bold underline"
"""Rich style of headings: the line below them is a rule."""
BEST_STYLE = "bold green"
"""Rich style of the best row of a table."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        title: heading.
        right: align to the right [None: if every cell is a number].
        keep: part that remains of a shortened cell.
        fixed: never shorten the cells. Numbers are never shortened.
    """

    title: str
    right: bool | None = None
    keep: KeptPart = "ends"
    fixed: bool = False


def has_color(stream: TextIO | None = None) -> bool:
    """Return True if a stream is a terminal with colors [standard output]."""
    stream = sys.stdout if stream is None else stream
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return not plain and stream is not None and stream.isatty()


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show a message on standard error, if that is a terminal, until a block ends that takes seconds.

    The block prints nothing itself.
    """
    stream = sys.stderr
    if stream is None or not stream.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    with suppress(OSError):
        print(f"{text} …", end="", file=stream, flush=True)
    try:
        yield
    finally:
        with suppress(OSError):
            print("\r\x1b[K", end="", file=stream, flush=True)  # erases the line


LOADING = "loading PyTorch"
"""Text while a command imports its libraries."""


def terminal_width() -> int:
    """Return the width of the terminal; if unknown, `COLUMNS`, or 80 [columns]."""
    return shutil.get_terminal_size().columns


def table(
    columns: Sequence[str | Column],
    rows: Sequence[Sequence[object]],
    *,
    width: int | None = None,
    color: bool | None = None,
    indent: int = 0,
    row_styles: Mapping[int, str] | None = None,
) -> str:
    """Format a table; numbers are right-aligned, and the widest cells are shortened to fit.

    Args:
        columns: headings, or columns with options.
        rows: one cell per column each; None is an empty cell.
        width: width to fit [that of the terminal].
        color: color headings and states [if standard output is a terminal with colors].
        indent: spaces before each line [0].
        row_styles: rich styles of rows by their index, such as `BEST_STYLE` [none].

    Returns:
        The lines, without a final line break.
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
        row_style = (row_styles or {}).get(number - 1, "") if number else TITLE_STYLE
        for cell, most, head, at_end in zip(row, widths, heads, right, strict=True):
            style = (STATE_STYLES.get(cell) if number else None) or row_style
            line += [(_pad(shorten(cell, most, keep=head.keep), most, right=at_end), style), (GAP, row_style)]
        lines.append(line[:-1])
    return _render(lines, has_color() if color is None else color)


def error_block(message: str, *, color: bool | None = None) -> str:
    """Return the lines of an error, each after `error: `; colored [if standard error is such a terminal]."""
    lines: list[Line] = []
    for line in message.splitlines() or [""]:
        key, separator, rest = line.partition(": ")
        lines.append([("error: ", "bold red"), (key, "bold" if separator else ""), (separator + rest, "")])
    return _render(lines, has_color(sys.stderr) if color is None else color)


def fact_block(facts: Mapping[str, str], *, color: bool | None = None, indent: int = 2) -> str:
    """Return a line per fact, its name first; colored [if standard output is such a terminal]."""
    most = max(map(columns_of, facts), default=0)
    lines = [[(" " * indent + _pad(name, most), "cyan"), (GAP + text, "")] for name, text in facts.items()]
    return _render(lines, has_color() if color is None else color)


def _narrow(widths: list[int], flexible: Sequence[int], room: int) -> None:
    """Narrow the widest flexible columns until all columns fit."""
    while flexible and sum(widths) > room:
        widest = max(flexible, key=lambda place: widths[place])
        if widths[widest] <= LEAST_WIDTH:
            break
        widths[widest] -= 1


def _pad(text: str, width: int, *, right: bool = False) -> str:
    spaces = " " * (width - columns_of(text))
    return spaces + text if right else text + spaces


def _render(lines: Iterable[Line], color: bool) -> str:
    """Join lines; with `color`, add the escape codes of a terminal."""
    if not color:
        return "\n".join("".join(text for text, _ in line).rstrip() for line in lines)
    from rich.console import Console
    from rich.text import Text

    console = Console(force_terminal=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(Text("\n").join(Text.assemble(*line) for line in lines), end="")
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
