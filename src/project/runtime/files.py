"""Atomic writes, and files that cannot be written for a while: a full disk, an I/O error, a read-only disk.

A training is worth more than a row of its metrics: what a file lacks is kept and written when it can be.
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

from project.runtime.text import LONGEST_NAME, short_name

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""Between two tries: one may take long on an ailing disk."""
LONGEST_STEM = 200
"""Bytes of a file's name that the name of a temporary file beside it begins with."""
FULL = (errno.ENOSPC, errno.EDQUOT)
URL = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]+:/")
"""Begins an address on a network, or `file:/`; `C:/` is none."""


def refuse_url(key: str, value: object) -> str:
    """Return an error line for a URL where a file is expected; nothing for a file."""
    if isinstance(value, str) and URL.match(value):
        return f"{key}={value}: files are loaded from disks alone; download it, and give its path"
    return ""


class Outage:
    """Reports once that a file cannot be written, and once that it can be again.

    Args:
        file: the file.
        consequence: what happens to its content meanwhile, as the end of a sentence.
        use_log: report to the log (default), else to standard error.
    """

    def __init__(self, file: Path, consequence: str, *, use_log: bool = True) -> None:
        self.file = file
        self.consequence = consequence
        self.reason = ""
        self._use_log = use_log
        self._tried = 0.0

    @property
    def lasts(self) -> bool:
        """True if the last try failed."""
        return bool(self.reason)

    @property
    def tried_just_now(self) -> bool:
        """True if the last try failed, and the next one should wait."""
        return self.lasts and time.monotonic() - self._tried < RETRY_S

    def begin(self, error: OSError) -> None:
        """Note a failed try."""
        reported, self.reason = self.lasts, reason_of(error)
        self._tried = time.monotonic()
        if not reported:
            line = f"warning: {self.file}: {self.reason}; {self.consequence}"
            if self._use_log:
                log.warning(line)
            else:
                with suppress(OSError):
                    print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Note a successful try."""
        if self.lasts:
            self.reason = ""
            if self._use_log:
                log.info(f"{self.file} is written again")


class GrowingFile:
    """Bytes appended to a file; a failed try neither repeats nor loses any.

    Args:
        outage: reports failures of its file.
        shared: other processes append to the file, too. Otherwise bytes beyond those written here are of
            a failed try, and overwritten.
        limit: most bytes kept; what exceeds it replaces everything kept before.
    """

    def __init__(self, outage: Outage, *, shared: bool = False, limit: int = 2**26) -> None:
        self.outage = outage
        self.file = outage.file
        self.shared = shared
        self.limit = limit
        self._pending = bytearray()
        self._written = 0

    def append(self, data: bytes) -> None:
        """Keep bytes for `flush`."""
        if len(self._pending) + len(data) > self.limit:
            del self._pending[:]
        self._pending += data

    def flush(self, *, now: bool = False) -> bool:
        """Write what is kept, unless a try failed a moment ago.

        Args:
            now: try even then.

        Returns:
            True if everything is written.
        """
        if not self._pending:
            return True
        if not now and self.outage.tried_just_now:
            return False
        try:
            self._write_shared() if self.shared else self._write_alone()
        except OSError as error:
            self.outage.begin(error)
            return False
        self.outage.end()
        return True

    def _write_shared(self) -> None:
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            while self._pending:
                del self._pending[: os.write(descriptor, self._pending)]
        finally:
            os.close(descriptor)

    def _write_alone(self) -> None:
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            self._written = min(self._written, os.fstat(descriptor).st_size)  # if the file was removed
            write_at(descriptor, self._written, self._pending)
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, self._written)
            raise
        finally:
            os.close(descriptor)  # where some file systems report that there was no room
        self._written += len(self._pending)
        del self._pending[:]


def write_at(descriptor: int, position: int, data: bytes | bytearray) -> None:
    """Write all of `data` at a position of an open file.

    Raises:
        OSError: it was written in part, or not at all.
    """
    with memoryview(data) as rest:
        done = 0
        while done < len(rest):
            done += os.pwrite(descriptor, rest[done:], position + done)


@contextmanager
def replacing(file: Path, *, keep: bool = False) -> Iterator[Path]:
    """Yield an unused path beside a file, which takes the file's name at the end.

    Args:
        file: file to write; its folder exists.
        keep: keep what was written before an error, in `NAME.part`, or `NAME.….part` if that is taken.

    Raises:
        OSError: it cannot be written.
    """
    unique = f"{short_name(file.name, LONGEST_STEM)}.{secrets.token_hex(4)}.part"
    partial = file.with_name(f"{short_name(file.name, LONGEST_NAME - 5)}.part" if keep else f".{unique}")
    try:
        partial.touch(exist_ok=False)
    except FileExistsError:  # a file of the user's, or another process's
        partial = file.with_name(unique)
        partial.touch(exist_ok=False)
    try:
        yield partial
        partial.replace(file)
    except BaseException:
        with suppress(OSError):
            if not keep or not partial.stat().st_size:
                partial.unlink()
        raise


def replace_text(file: Path, text: str, *, durable: bool = True) -> None:
    """Write a small text file atomically.

    A full disk may lack the room for both versions: then the new text overwrites the old one in its place.

    Args:
        file: file to write.
        text: new content.
        durable: wait until the text is on the disk. Otherwise a power cut may leave an empty file, which is
            acceptable for a file that is written all the time.

    Raises:
        OSError: the old text is still there.
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
        if error.errno not in FULL or not file.exists():
            raise
        _overwrite(file, data)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk.

    Raises:
        OSError: it is not.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _overwrite(file: Path, data: bytes) -> None:
    descriptor = os.open(file, os.O_RDWR)  # not made: there is no room
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
    """Return the system's reason of an error, without the path."""
    return error.strerror or str(error)


class LogFile(logging.Handler):
    """Appends log lines to a file, to which other processes may append, too.

    The standard library's handler prints a traceback for every line that it cannot write, and loses the line.

    Args:
        filename: the file.
    """

    def __init__(self, filename: str) -> None:
        super().__init__()
        consequence = "lines are kept until it can be written again, lost if the run ends before"
        outage = Outage(Path(filename), consequence, use_log=False)
        self._file = GrowingFile(outage, shared=True, limit=2**20)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._file.append(f"{self.format(record)}\n".encode(errors="backslashreplace"))
            self._file.flush()
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._file.flush(now=True)
        super().close()
