"""Pictures within TensorBoard's event files, read without TensorFlow."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGEST = 2**28
"""Bytes of a folder's event files that are read at most."""
LARGEST_EVENT = 2**26
FRAME = 12
"""Bytes before an event: its length as a 64-bit number and that number's checksum; four follow the event."""
PNG = b"\x89PNG\r\n\x1a\n"
PLUGIN = "images"


def read_pictures(folder: Path) -> dict[str, tuple[int, bytes]]:
    """The latest picture of each tag below a run's event files.

    Args:
        folder: the run's.

    Returns:
        For each tag the step and the bytes of a PNG file. A damaged file gives what comes before the damage.
    """
    found: dict[str, tuple[int, bytes]] = {}
    left = LARGEST
    for file in sorted(folder.glob("events.out.tfevents.*")):
        try:
            left -= file.stat().st_size
            if left < 0:
                break
            for record in _records(file):
                if PNG in record:  # not one of the scalars, of which there are thousands
                    found |= _pictures(record)
        except OSError:
            continue
    return found


def _pictures(record: bytes) -> dict[str, tuple[int, bytes]]:
    """The pictures of an event, by tag, with its step; none if it is damaged."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    try:
        event = Event.FromString(record)
    except DecodeError:
        return {}
    pictures = {value.tag: _picture(value) for value in event.summary.value}
    return {tag: (event.step, picture) for tag, picture in pictures.items() if picture is not None}


def _records(file: Path) -> Iterator[bytes]:
    """The events of a file, without their frames; it ends where one is cut off."""
    with file.open("rb") as stream:
        while len(frame := stream.read(FRAME)) == FRAME:
            (length,) = struct.unpack_from("<Q", frame)
            if length > LARGEST_EVENT:
                return
            record = stream.read(length)
            if len(record) < length or len(stream.read(4)) < 4:
                return
            yield record


def _picture(value: Any) -> bytes | None:
    """The PNG that a summary's value holds in either of the two forms that writers use, or None."""
    if value.WhichOneof("value") == "image":
        picture = value.image.encoded_image_string
    elif value.metadata.plugin_data.plugin_name == PLUGIN and len(value.tensor.string_val) > 2:
        picture = value.tensor.string_val[2]  # after width and height
    else:
        return None
    return picture if picture.startswith(PNG) else None
