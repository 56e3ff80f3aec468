"""Files of a run that cannot be written for a while: a full disk, an I/O error, a disk gone read-only.

Training is worth more than a row of its table, so what a file lacks is kept and written when it can be. Needs
no torch.
"""

import errno
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from project.runtime.text import LONGEST_NAME, short_name

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""Between two tries: one may take long on a disk that is ailing."""
LONGEST_STEM = 200
"""Bytes of a file's name, of which those that are written beside it are made."""
FULL = (errno.ENOSPC, errno.EDQUOT)


class Outage:
    """Tells once that a file cannot be written, and once that it can be again.

    Args:
        file: of which it tells.
        consequence: what becomes of what is to be written, as an end of a sentence.
    """

    def __init__(self, file: Path, consequence: str) -> None:
        self.file = file
        self.consequence = consequence
        self.reason = ""
        self._tried = 0.0

    @property
    def lasts(self) -> bool:
        """Whether the last try failed."""
        return bool(self.reason)

    @property
    def tried_just_now(self) -> bool:
        """Whether the last try failed, and another one should wait."""
        return self.lasts and time.monotonic() - self._tried < RETRY_S

    def begin(self, error: OSError) -> None:
        """Take notice of a try that failed."""
        told, self.reason = self.lasts, reason_of(error)
        self._tried = time.monotonic()
        if not told:
            self.tell(logging.WARNING, f"warning: {self.file}: {self.reason}; {self.consequence}")

    def end(self) -> None:
        """Take notice of a try that succeeded."""
        if self.lasts:
            self.reason = ""
            self.tell(logging.INFO, f"{self.file} is written again")

    def tell(self, level: int, line: str) -> None:
        """Show a line to the user."""
        log.log(level, line)


class GrowingFile:
    """Bytes appended to a file, of which nothing is repeated or left out whichever try fails.

    Args:
        outage: tells of failures; its file is written.
        shared: others append to the file too. Otherwise what is there beyond the bytes written here is the
            rest of a failed try, and written over.
        limit: most bytes kept; what would exceed it takes the place of all that was kept before.
    """

    def __init__(self, outage: Outage, *, shared: bool = False, limit: int = 2**26) -> None:
        self.outage = outage
        self.file = outage.file
        self.shared = shared
        self.limit = limit
        self._pending = bytearray()
        self._written = 0

    def append(self, data: bytes) -> None:
        """Take bytes, to be written by `flush`."""
        if len(self._pending) + len(data) > self.limit:
            del self._pending[:]
        self._pending += data

    def flush(self, *, now: bool = False) -> bool:
        """Write what is kept, unless a try failed a moment ago.

        Args:
            now: try even then.

        Returns:
            Whether all is written.
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
            os.close(descriptor)  # where some file systems tell that there was no room
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
    """Where to write a file that is to be whole or not there: beside it, under a name that nothing has.

    It takes the file's name when all is done.

    Args:
        file: to be written; its folder is there.
        keep: leave what was written before an error, in `NAME.part`, or `NAME.….part` if that is taken.

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
    """Write a small text file, so that readers see the old text or the new one.

    On a full disk there may be no room for both. Then the new text is written over the old one, in one call
    and in the room that the old one has.

    Args:
        file: to write.
        text: its new content.
        durable: wait until the text is on the disk before it takes the old one's name. Otherwise a power cut
            may leave an empty file of that name; one that is written all the time is worth no such wait.

    Raises:
        OSError: the old text is there still.
    """
    data = text.encode()
    partial = file.with_name(f"{file.name}.partial")
    try:
        partial.write_bytes(data)
        if durable:
            _sync(partial)
        partial.replace(file)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        if error.errno not in FULL or not file.exists():
            raise
        _write_over(file, data)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_over(file: Path, data: bytes) -> None:
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
    """What the system says of an error, without the path."""
    return error.strerror or str(error)
