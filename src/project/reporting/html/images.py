"""Images of a run: figures of its evaluations, or images in its TensorBoard event files."""

import base64
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from project.loggers.tensorboard_added import GROUP, MARK
from project.reporting.html.evaluations import evaluation_files
from project.runs.results import natural_sort_key

PNG = b"\x89PNG\r\n\x1a\n"
MAX_BYTES = 4 * 2**20
"""Maximum size of an image; only the names of larger images are listed."""
MAX_TOTAL_BYTES = 12 * 2**20
MAX_EVENT_BYTES, MAX_EVENTS_BYTES = 2**26, 2**28
"""Maximum size of an event, and of all event files in a folder."""
FRAME_BYTES = 12
"""Before each event: its length (64 bits) and the checksum of the length; 4 more bytes follow the event."""
PLUGIN = "images"
EXPLANATIONS = "explanations.png"
"""Sheet of the command explain, in a folder next to the evaluations."""
MISTAKES = re.compile("(?i)mistakes")
"""Names of pictures of mistakes."""
WIDE_PIXELS = 800
DIAGRAM = re.compile("confusion|reliability")
"""Names of figures without photos, whose colors may be inverted in dark mode."""
SMALL_PIXELS = 300
"""Smaller images are enlarged without interpolation."""


class Image(NamedTuple):
    """Image of a page."""

    name: str
    source: str  # file or step
    png: bytes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, pixels."""
        width, height = (int.from_bytes(self.png[start : start + 4], "big") for start in (16, 20))
        return width, height

    @property
    def is_small(self) -> bool:
        """True for images that are enlarged without interpolation."""
        return max(self.size) < SMALL_PIXELS

    @property
    def css_class(self) -> str:
        """Class of the element: `pixels` for small images, `diagram` for figures inverted in dark mode."""
        return "pixels" if self.is_small else "diagram" if DIAGRAM.search(self.name.lower()) else ""

    @property
    def is_wide(self) -> bool:
        """True for images that take the full width of the page."""
        width, height = self.size
        return width > WIDE_PIXELS or (width > 1.7 * height and width > 700)

    @property
    def address(self) -> str:
        """Data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


class Gallery(NamedTuple):
    """Images of a page, and the names of damaged or too large images."""

    images: list[Image]
    left_out: list[str]


def make_gallery(images: Iterable[Image]) -> Gallery | None:
    """Select images up to `MAX_TOTAL_BYTES`; None if there are no images."""
    gallery, room = Gallery([], []), MAX_TOTAL_BYTES
    for image in images:
        if image.png.startswith(PNG) and len(image.png) <= min(MAX_BYTES, room):
            room -= len(image.png)
            gallery.images.append(image)
        else:
            gallery.left_out.append(f"{image.name} ({image.source})")
    return gallery if any(gallery) else None


def run_gallery(folder: Path) -> Gallery | None:
    """Return the figures of a run's evaluations; without any, the images in its event files.

    Sheets of explanations stand behind the first picture of mistakes.
    """
    files = sorted(evaluation_files(folder, ".png"), key=lambda file: natural_sort_key(str(file)))
    sheets = read_pngs([file for file in files if file.name == EXPLANATIONS], folder)
    figures = list(read_pngs([file for file in files if file.name != EXPLANATIONS], folder))
    if not figures:
        events = sorted(read_event_images(folder).items())
        figures = [Image(_title(tag), f"step {step:,}", png) for tag, (step, png) in events]
    place = next((at for at, image in enumerate(figures, 1) if MISTAKES.search(image.name)), len(figures))
    return make_gallery([*figures[:place], *sheets, *figures[place:]])


def read_pngs(files: Iterable[Path], folder: Path) -> Iterator[Image]:
    """Yield images from PNG files; unreadable and too large files give empty images."""
    for file in files:
        try:
            png = file.read_bytes() if file.stat().st_size <= MAX_BYTES else b""
        except OSError:
            png = b""
        yield Image(_title(file.stem), str(file.relative_to(folder)), png)


def _title(name: str) -> str:
    """Convert a file name or tag to a title: `visuals/val/confusion_matrix` to `Confusion matrix, val`."""
    parts = name.strip("/").removeprefix(f"{GROUP}/").split("/")
    *above, last = (re.sub(r"[_\-\s]+", " ", part) for part in parts)
    last = last.strip() or name
    return ", ".join([f"{last[:1].upper()}{last[1:]}", *above])


def read_event_images(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return step and PNG of the latest image of each tag in the event files of a folder.

    Requires no TensorFlow. Images before the damage in a damaged file are included.
    """
    found: dict[str, tuple[int, bytes]] = {}
    room = MAX_EVENTS_BYTES
    for file in sorted(folder.glob("events.out.tfevents.*")):
        if MARK in file.name:  # also a file of its own, in the folder of evaluations
            continue
        try:
            room -= file.stat().st_size
            if room < 0:
                break
            for record in _read_records(file):
                if PNG in record:  # parsing thousands of scalars would take long
                    found |= _parse_images(record)
        except OSError:
            continue
    return found


def _read_records(file: Path) -> Iterator[bytes]:
    """Yield the serialized events of a file, up to the first incomplete one."""
    with file.open("rb") as stream:
        while len(frame := stream.read(FRAME_BYTES)) == FRAME_BYTES:
            (length,) = struct.unpack_from("<Q", frame)
            if length > MAX_EVENT_BYTES:
                return
            record = stream.read(length)
            if len(record) < length or len(stream.read(4)) < 4:
                return
            yield record


def _parse_images(record: bytes) -> dict[str, tuple[int, bytes]]:
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    try:
        event = Event.FromString(record)
    except DecodeError:
        return {}
    images = {value.tag: _png_of(value) for value in event.summary.value}
    return {tag: (event.step, png) for tag, png in images.items() if png.startswith(PNG)}


def _png_of(value: Any) -> bytes:
    """Return the PNG of an image summary or an image tensor; empty for other values."""
    if value.WhichOneof("value") == "image":
        return value.image.encoded_image_string
    if value.metadata.plugin_data.plugin_name == PLUGIN and len(value.tensor.string_val) > 2:
        return value.tensor.string_val[2]  # after width and height
    return b""
