"""What ranks tell the process that forked them, in memory that they share with it.

A rank that fails prints nothing: it may only be the one that noticed that another had gone. It leaves its
report here, and its parent, who sees them all, shows the one that came first.
"""

import contextlib
import io
import json
import mmap
import re
import struct
import time
from typing import NamedTuple

from project.config.cli import report
from project.errors import summarize

LENGTH = struct.Struct("<Q")
MOST_CHARACTERS = 16_000
SLOT_BYTES = 16 * MOST_CHARACTERS  # JSON has up to 12 for a character; pages that nobody writes take no room

BROKEN_CONNECTION = re.compile(
    r"connection (was )?(likely )?(closed|reset|refused)|broken pipe|socket (error|timeout|closed)|gloo|nccl"
    r"|timed out waiting|remote (process|peer)",
    re.IGNORECASE,
)


class Report(NamedTuple):
    """Why a rank ended.

    Args:
        when: on the clock that all processes of a machine share (`time.monotonic`), s.
        exit_code: of its process.
        shown: what it would have printed.
        summary: the same in one line, where it is a traceback.
        follows: the error is that of a connection which the end of another rank breaks, too.
        signal: by which all ranks were told to stop, and did after the same step; 0: this is an error.
    """

    when: float
    exit_code: int
    shown: str = ""
    summary: str = ""
    follows: bool = False
    signal: int = 0

    @classmethod
    def of(cls, error: BaseException) -> "Report":
        """Describe an error."""
        when, shown = time.monotonic(), io.StringIO()
        with contextlib.redirect_stderr(shown):
            exit_code = report(error)
        summary = ": ".join(dict.fromkeys([type(error).__name__, summarize(error)]))
        return cls(when, exit_code, shown.getvalue(), summary, _is_of_connection(error))


def _is_of_connection(error: BaseException | None) -> bool:
    from torch.distributed import DistError

    while error is not None:
        if isinstance(error, DistError):
            return True
        if isinstance(error, RuntimeError | OSError) and BROKEN_CONNECTION.search(str(error)):
            return True
        error = error.__cause__
    return False


class Reports:
    """A place for the report of each rank. To be made before the ranks are forked.

    Args:
        count: of ranks.
    """

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, count * SLOT_BYTES)

    def write(self, rank: int, report: Report) -> None:
        """Leave a rank's report. The length comes last: there is a whole report or none."""
        cut = report._replace(
            shown=report.shown[-MOST_CHARACTERS:], summary=report.summary[: MOST_CHARACTERS // 8]
        )
        text = json.dumps(cut).encode()
        start = rank * SLOT_BYTES
        body = start + LENGTH.size
        self._memory[body : body + len(text)] = text
        LENGTH.pack_into(self._memory, start, len(text))

    def read(self, rank: int) -> Report | None:
        """Return a rank's report, None if it left none."""
        start = rank * SLOT_BYTES
        (length,) = LENGTH.unpack_from(self._memory, start)
        body = start + LENGTH.size
        return Report(*json.loads(self._memory[body : body + length])) if length else None
