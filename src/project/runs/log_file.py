"""The run's log, as a handler for `logging`."""

import logging
import sys
from contextlib import suppress
from pathlib import Path

from project.runtime.files import GrowingFile, Outage

LIMIT_BYTES = 2**20
"""Of lines that are kept while the file cannot be written."""


class LogFile(logging.Handler):
    """Appends lines to a file, to which others may append too.

    The standard library's handler prints a traceback for every line that it cannot write, and loses the line.

    Args:
        filename: the file.
    """

    def __init__(self, filename: str) -> None:
        super().__init__()
        self._file = GrowingFile(_Told(Path(filename)), shared=True, limit=LIMIT_BYTES)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, and those before it that could not be written."""
        try:
            self._file.append(f"{self.format(record)}\n".encode(errors="backslashreplace"))
            self._file.flush()
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Try once more to write what could not be written."""
        self._file.flush(now=True)
        super().close()


class _Told(Outage):
    """An outage of the log itself, told on standard error."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, "lines are kept until it can be written again, lost if the run ends before")

    def tell(self, level: int, line: str) -> None:
        if level >= logging.WARNING:
            with suppress(OSError):
                print(line, file=sys.stderr, flush=True)
