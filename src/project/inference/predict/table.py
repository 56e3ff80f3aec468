"""Predictions as a table that fits a terminal. Needs no torch."""

import unicodedata
from collections.abc import Sequence
from os.path import commonpath, dirname, join
from typing import TYPE_CHECKING

from project.runtime.text import shown

if TYPE_CHECKING:
    from project.inference.predict.predictions import Prediction

GAP = "  "
PROBABILITY = "probability"
LEAST_FILE = 20
"""Columns of a terminal that a file's name has before there are any for a second class."""
MOST_CLASS = 24


class TableLayout:
    """Which columns there are, and how wide: known before the first row.

    Args:
        files: all that may be shown; the folder that they have in common is said once, in the heading.
        class_names: all that may be shown.
        top: classes of a row, if there is room.
        width: of the terminal, in characters.
    """

    def __init__(self, files: Sequence[str], class_names: Sequence[str], top: int, width: int) -> None:
        self.folder = _common_folder(files)
        self.heading = f"file in {shown(self.folder)}" if self.folder else "file"
        widest = max(map(columns_of, map(shown, class_names)))
        self.class_width = min(max(widest, len("class")), MOST_CLASS)
        longest = max(columns_of(self._name(file)) for file in files)
        wanted = max(longest, min(columns_of(self.heading), LEAST_FILE))
        room = width - len(GAP) - self.class_width - len(GAP) - len(PROBABILITY)
        more = len(GAP) + self.class_width + len(" 0.99")
        self.more = max(0, min(top - 1, (room - min(wanted, LEAST_FILE)) // more))
        self.file_width = max(1, min(wanted, room - self.more * more))

    def head(self) -> str:
        """The line above the rows."""
        titles = [f"{ordinal(number + 2):<{self.class_width + 5}}" for number in range(self.more)]
        first = [fit(self.heading, self.file_width), fit("class", self.class_width), PROBABILITY]
        return GAP.join([*first, *titles]).rstrip()

    def row(self, prediction: "Prediction") -> str:
        """One file's line."""
        cells = [
            fit(self._name(prediction.file), self.file_width),
            fit(shown(prediction.class_name), self.class_width),
            f"{_cut(prediction.probability, 4):>{len(PROBABILITY)}}",
        ]
        others = zip(prediction.classes[1:], prediction.probabilities[1:], strict=True)
        cells += [
            f"{fit(shown(name), self.class_width)} {_cut(value, 2)}"
            for name, value in list(others)[: self.more]
        ]
        return GAP.join(cells)

    def _name(self, file: str) -> str:
        return shown(file[len(self.folder) :])


def ordinal(number: int) -> str:
    """A place in a row: `2nd`, `3rd`, `4th`."""
    last = 0 if number % 100 in (11, 12, 13) else number % 10
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(last, 'th') }"


def _cut(probability: float, digits: int) -> str:
    """A probability, never rounded up to a certainty that it is not."""
    factor = 10**digits
    if probability < 1:
        probability = min(round(probability * factor), factor - 1) / factor
    return f"{probability:.{digits}f}"


def _common_folder(files: Sequence[str]) -> str:
    """The folder in which all files are, with its slash; empty if there is none, or only one file."""
    folders = {dirname(file) for file in files}
    if len(files) < 2 or "" in folders:
        return ""
    try:
        common = commonpath(folders)
    except ValueError:  # absolute ones among relative ones
        return ""
    folder = join(common, "") if common else ""
    return folder if all(file.startswith(folder) for file in files) else ""


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes: East Asian characters take two, accents none."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fit(text: str, width: int) -> str:
    """Fill a text up to a number of columns, or cut it there: in its middle, where paths differ least."""
    if (taken := columns_of(text)) > width:
        tail = _head(text[::-1], (width - 1) // 2)[::-1]
        text = f"{_head(text, width - 1 - columns_of(tail))}…{tail}"
        taken = columns_of(text)
    return text + " " * (width - taken)


def _head(text: str, width: int) -> str:
    """As many of the first characters as there are columns for."""
    taken = 0
    for place, character in enumerate(text):
        taken += _columns(character)
        if taken > width:
            return text[:place]
    return text
