"""Atomic writes, and appended files that survive a full disk, an I/O error or a read-only disk.

A failed write to a log or a table does not end the training: the bytes are kept in memory and written later.
"""

import errno
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from project.runtime.process import command_state
from project.runtime.text import short_name, strip_control

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""Least time between two attempts [s]; an attempt may take long on a failing disk."""
MAX_STEM_BYTES = 200
"""Longest part of a file's name that the name of its temporary file repeats [bytes]."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
URL = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]+:/")
"""Start of a URL, `file:/` included; `C:/` does not match."""


def refuse_url(key: str, value: object) -> str:
    """Return an error line if a value is a URL where a file is expected; otherwise an empty string."""
    if isinstance(value, str) and URL.match(value):
        return f"{key}={value}: a URL, but only local files are loaded; download the file and give its path"
    return ""


class Outage:
    """Reports once that a file cannot be written, and once that it can be again.

    Args:
        file: the file.
        consequence: end of the warning, which says what becomes of the content.
        use_log: report to the log [default], else to standard error.
    """

    def __init__(self, file: Path, consequence: str, *, use_log: bool = True) -> None:
        self.file = file
        self.consequence = consequence
        self.reason = ""
        self._use_log = use_log
        self._tried = 0.0

    @property
    def tried_just_now(self) -> bool:
        """True if an attempt failed less than `RETRY_S` ago."""
        return bool(self.reason) and time.monotonic() - self._tried < RETRY_S

    def begin(self, error: OSError) -> None:
        """Note a failed attempt, and warn if it is the first."""
        reported, self.reason = bool(self.reason), reason_of(error)
        self._tried = time.monotonic()
        if not reported:
            line = f"warning: {self.file}: {self.reason}; {self.consequence}"
            if self._use_log:
                log.warning(line)
            else:
                with suppress(OSError):
                    print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Note a successful attempt."""
        if self.reason:
            self.reason = ""
            if self._use_log:
                log.info(f"{self.file} is written again")


class GrowingFile:
    """Appends bytes to a file that other processes may append to; a failed write loses and repeats none.

    Args:
        outage: reports failures of its file.
        limit: most bytes kept in memory; when exceeded, older bytes are dropped.
    """

    def __init__(self, outage: Outage, *, limit: int = 2**26) -> None:
        self.outage = outage
        self.file = outage.file
        self.limit = limit
        self._pending = bytearray()

    def append(self, data: bytes) -> None:
        """Keep bytes until `flush`."""
        if len(self._pending) + len(data) > self.limit:
            del self._pending[:]
        self._pending += data

    def flush(self, *, now: bool = False) -> bool:
        """Write the kept bytes; return true if none are left.

        Args:
            now: write even if an attempt failed less than `RETRY_S` ago.
        """
        if not self._pending:
            return True
        if not now and self.outage.tried_just_now:
            return False
        try:
            descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                while self._pending:
                    del self._pending[: os.write(descriptor, self._pending)]
            finally:
                os.close(descriptor)
        except OSError as error:
            self.outage.begin(error)
            return False
        self.outage.end()
        return True


def write_at(descriptor: int, position: int, data: bytes | bytearray) -> None:
    """Write all of `data` at a position of an open file."""
    with memoryview(data) as rest:
        done = 0
        while done < len(rest):
            done += os.pwrite(descriptor, rest[done:], position + done)


@contextmanager
def atomic_replacement(file: Path) -> Iterator[Path]:
    """Yield a temporary path in a file's folder, and rename it to the file at the end."""
    partial = file.with_name(f".{short_name(file.name, MAX_STEM_BYTES)}.{secrets.token_hex(4)}.part")
    partial.touch(exist_ok=False)
    try:
        yield partial
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def replace_text(file: Path, text: str, *, durable: bool = True) -> None:
    """Write a small text file atomically; an error leaves the old text.

    On a full disk without room for both versions, the new text overwrites the old one in place.

    Args:
        file: file to write or replace.
        text: new content.
        durable: wait until the text is on the disk. Otherwise a power failure may leave an empty file.
    """
    data = text.encode()
    partial = file.with_name(f"{file.name}.partial")
    try:
        partial.write_bytes(data)
        if durable:
            sync(partial)
        partial.replace(file)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        if error.errno not in DISK_FULL or not file.exists():
            raise
        _overwrite(file, data)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _overwrite(file: Path, data: bytes) -> None:
    descriptor = os.open(file, os.O_RDWR)  # without O_CREAT: the disk has no room for a new file
    try:
        old = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        try:
            write_at(descriptor, 0, data)
            os.ftruncate(descriptor, len(data))
        except OSError:
            with suppress(OSError):
                write_at(descriptor, 0, old)
                os.ftruncate(descriptor, len(old))
            raise
    finally:
        os.close(descriptor)


def reason_of(error: OSError) -> str:
    """Return the system's message for an error, without the path."""
    return error.strerror or str(error)


class ScreenLog(logging.StreamHandler):  # type: ignore[type-arg]
    """Log handler that lets a run continue without its screen, and keeps the error for its end."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            command_state.lost_output = error
        else:
            super().handleError(record)


class LogFile(logging.Handler):
    """Log handler that appends lines without colors to a file, to which other processes may append.

    The standard library's `FileHandler` prints a traceback for each line that it cannot write, and loses it.
    """

    def __init__(self, filename: str) -> None:
        super().__init__()
        consequence = "lines are kept until it can be written again, and lost if the run ends before"
        outage = Outage(Path(filename), consequence, use_log=False)
        self._file = GrowingFile(outage, limit=2**20)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = strip_control(self.format(record))
            self._file.append(f"{line}\n".encode(errors="backslashreplace"))
            self._file.flush()
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._file.flush(now=True)
        super().close()
