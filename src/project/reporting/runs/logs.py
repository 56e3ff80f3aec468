"""End of a run's log, read from where the last answer ended."""

import os
from pathlib import Path
from typing import Any

from project.runtime.secrets import redact_text
from project.runtime.text import strip_control

LOG_BYTES = 2**16
"""Maximum number of bytes of one answer."""
LAST_LINES = 12


def find_log(folder: Path) -> Path | None:
    """Return the log of a run; None without one."""
    file = folder / "train.log"
    return file if file.is_file() else next(iter(sorted(folder.glob("*.log"))), None)


def read_log(folder: Path, start: int) -> dict[str, Any]:
    """Return the complete lines of a log from a position on.

    Args:
        folder: run folder.
        start: position in the file [bytes]; negative for the end of the log.

    Returns:
        `text`, `next` (position for the next call), and `is_new`: the text does not continue an earlier one.
    """
    file = find_log(folder)
    if file is None:
        return {"text": "", "next": 0, "is_new": True}
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            is_new = start < 0 or start > size or size - start > LOG_BYTES
            first = max(0, size - LOG_BYTES) if is_new else start
            stream.seek(first)
            data = stream.read(LOG_BYTES)
    except OSError:
        return {"text": "", "next": max(0, start), "is_new": False}
    if is_new and first:
        dropped = data.find(b"\n") + 1  # an incomplete first line
        first, data = first + dropped, data[dropped:]
    complete = data[: data.rfind(b"\n") + 1] or (data if len(data) == LOG_BYTES else b"")
    text = strip_control(redact_text(complete.decode(errors="replace")))
    return {"text": text, "next": first + len(complete), "is_new": is_new}


def last_lines(folder: Path, count: int = LAST_LINES) -> str:
    """Return the last lines of a log that are not empty."""
    lines = [line.rstrip() for line in read_log(folder, -1)["text"].splitlines() if line.strip()]
    return "\n".join(lines[-count:])
