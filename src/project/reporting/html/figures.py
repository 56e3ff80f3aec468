"""Pictures of a run, within the page: what an evaluation drew, or else what TensorBoard was shown."""

import base64
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from project.reporting.html.evaluated import evaluation_files
from project.reporting.html.event_images import PNG, read_pictures
from project.reporting.html.html import Markup, element, join
from project.runs.results import natural

LARGEST = 4 * 2**20
"""Bytes of a picture that is shown; others are named."""
MOST_BYTES = 12 * 2**20
"""Of all pictures of a page."""
FOLDED = ("graph", "embedding", "histogram")


class Figure(NamedTuple):
    """A picture.

    Args:
        name: what it shows, in words.
        source: where it comes from.
        png: its bytes.
    """

    name: str
    source: str
    png: bytes


def read_figures(folder: Path) -> list[Figure]:
    """The pictures of a run: those of its evaluations; if there are none, those in its event files."""
    found = [
        Figure(_words(file.stem), str(file.relative_to(folder)), _read(file))
        for file in sorted(evaluation_files(folder, ".png"), key=lambda file: natural(str(file)))
    ]
    if found:
        return found
    pictures = read_pictures(folder)
    return [Figure(_words(tag), f"step {step:,}", png) for tag, (step, png) in sorted(pictures.items())]


def read_pngs(files: Iterable[Path], folder: Path) -> list[Figure]:
    """Pictures from files."""
    return [Figure(_words(file.stem), str(file.relative_to(folder)), _read(file)) for file in files]


def _read(file: Path) -> bytes:
    """Content of a file; nothing if it cannot be read, or is too large to be shown anyway."""
    try:
        return file.read_bytes() if file.stat().st_size <= LARGEST else b""
    except OSError:
        return b""


def _words(name: str) -> str:
    """A file's or tag's name as a title: `val/confusion_matrix` is `Confusion matrix, val`."""
    *above, last = name.strip("/").split("/")
    last = re.sub(r"[_\-\s]+", " ", last).strip() or name
    rest = ", ".join(re.sub(r"[_\-\s]+", " ", part) for part in above)
    return f"{last[:1].upper()}{last[1:]}" + (f", {rest}" if rest else "")


def gallery(figures: Iterable[Figure]) -> Markup | None:
    """Figures side by side, each by its size; None where there are none."""
    shown, left, passed_over = [], MOST_BYTES, []
    for figure in figures:
        if not figure.png.startswith(PNG) or len(figure.png) > min(LARGEST, left):
            passed_over.append(f"{figure.name} ({figure.source})")
            continue
        left -= len(figure.png)
        shown.append(picture(figure))
    if not shown and not passed_over:
        return None
    note = f"Not shown, for being damaged or too large: {', '.join(passed_over)}." if passed_over else ""
    return join(element("div", shown, class_="gallery"), element("p", note, class_="note") if note else None)


def picture(figure: Figure) -> Markup:
    """A picture with its title."""
    width, height = (int.from_bytes(figure.png[start : start + 4], "big") for start in (16, 20))
    # Pixels of small images are to be seen as such.
    class_ = "pixels" if max(width, height) < 300 else None
    wide = " wide" if width > 1.7 * height and width > 700 else ""
    image = element(
        "img",
        src="data:image/png;base64," + base64.b64encode(figure.png).decode(),
        alt=f"{figure.name} ({figure.source})",
        width=width,
        height=height,
        class_=class_,
    )
    caption = element("figcaption", element("h4", figure.name), element("span", figure.source, class_="dim"))
    return element("figure", caption, image, class_=f"card picture{wide}")
