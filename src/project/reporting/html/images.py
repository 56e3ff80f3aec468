"""Images of a run for its page: those of its evaluations, or else those in TensorBoard's event files."""

import base64
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from project.reporting.html.evaluations import evaluation_files
from project.runs.results import natural_sort_key

PNG = b"\x89PNG\r\n\x1a\n"
MAX_BYTES = 4 * 2**20
"""Limit of an image; larger ones are only named."""
MAX_TOTAL_BYTES = 12 * 2**20
MAX_EVENT_BYTES, MAX_EVENTS_BYTES = 2**26, 2**28
"""Limits of an event, and of all event files of a folder."""
FRAME = 12
"""Bytes before an event: its length as a 64-bit number and that number's checksum; four follow the event."""
PLUGIN = "images"
SMALL = 300
"""Pixels; the pixels of smaller images are drawn as squares."""


class Image(NamedTuple):
    """An image of a page."""

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
        """True for images whose pixels are drawn as squares."""
        return max(self.size) < SMALL

    @property
    def is_wide(self) -> bool:
        """True for images that take the page's width."""
        width, height = self.size
        return width > 1.7 * height and width > 700

    @property
    def address(self) -> str:
        """Data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


class Gallery(NamedTuple):
    """Images side by side, and the names of damaged or too large ones."""

    images: list[Image]
    left_out: list[str]


def make_gallery(images: Iterable[Image]) -> Gallery | None:
    """Choose the images that a page has room for; None where there are none."""
    gallery, room = Gallery([], []), MAX_TOTAL_BYTES
    for image in images:
        if image.png.startswith(PNG) and len(image.png) <= min(MAX_BYTES, room):
            room -= len(image.png)
            gallery.images.append(image)
        else:
            gallery.left_out.append(f"{image.name} ({image.source})")
    return gallery if any(gallery) else None


def run_gallery(folder: Path) -> Gallery | None:
    """Return the images of a run's evaluations; if there are none, those in its event files."""
    files = sorted(evaluation_files(folder, ".png"), key=lambda file: natural_sort_key(str(file)))
    if files:
        return make_gallery(read_pngs(files, folder))
    events = sorted(read_event_images(folder).items())
    return make_gallery(Image(_title(tag), f"step {step:,}", png) for tag, (step, png) in events)


def read_pngs(files: Iterable[Path], folder: Path) -> Iterator[Image]:
    """Yield images from files; those that cannot be read are empty."""
    for file in files:
        try:
            png = file.read_bytes() if file.stat().st_size <= MAX_BYTES else b""
        except OSError:
            png = b""
        yield Image(_title(file.stem), str(file.relative_to(folder)), png)


def _title(name: str) -> str:
    """Return a file's or tag's name as a title: `val/confusion_matrix` as `Confusion matrix, val`."""
    *above, last = (re.sub(r"[_\-\s]+", " ", part) for part in name.strip("/").split("/"))
    last = last.strip() or name
    return ", ".join([f"{last[:1].upper()}{last[1:]}", *above])


def read_event_images(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return step and PNG of the latest image of each tag in a folder's event files.

    Needs no TensorFlow. Of a damaged file, the images before the damage count.
    """
    found: dict[str, tuple[int, bytes]] = {}
    room = MAX_EVENTS_BYTES
    for file in sorted(folder.glob("events.out.tfevents.*")):
        try:
            room -= file.stat().st_size
            if room < 0:
                break
            for record in _read_records(file):
                if PNG in record:  # scalars, of which there are thousands, need not be parsed
                    found |= _parse_images(record)
        except OSError:
            continue
    return found


def _read_records(file: Path) -> Iterator[bytes]:
    """Yield the events of a file without their frames, up to the first incomplete one."""
    with file.open("rb") as stream:
        while len(frame := stream.read(FRAME)) == FRAME:
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
    """Return the PNG in either of the two forms that writers use, or nothing."""
    if value.WhichOneof("value") == "image":
        return value.image.encoded_image_string
    if value.metadata.plugin_data.plugin_name == PLUGIN and len(value.tensor.string_val) > 2:
        return value.tensor.string_val[2]  # after width and height
    return b""
