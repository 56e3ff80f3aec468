"""Reports of the ranks to their parent, in shared memory.

A failing rank prints nothing, because its error may only follow from that of another rank. It writes a
report, and the parent prints the first one.
"""

import contextlib
import io
import json
import mmap
import re
import struct
import time
from typing import NamedTuple

from project.config import cli
from project.errors import summarize

LENGTH = struct.Struct("<Q")
MAX_CHARACTERS = 16_000
SLOT_BYTES = 16 * MAX_CHARACTERS  # JSON takes up to 12 per character; untouched pages take no memory

BROKEN_CONNECTION = re.compile(
    r"connection (was )?(likely )?(closed|reset|refused)|broken pipe|socket (error|timeout|closed)|gloo|nccl"
    r"|timed out waiting|remote (process|peer)",
    re.IGNORECASE,
)


class RankReport(NamedTuple):
    """Reason why a rank ended.

    Args:
        when: time on `time.monotonic`, which all processes of a machine share, in seconds.
        exit_code: exit code of the rank.
        output: error message or traceback.
        summary: the error on one line.
        is_connection_error: the error may follow from the end of another rank.
        signal: number of the stop signal that all ranks obeyed; 0 if the rank failed.
    """

    when: float
    exit_code: int
    output: str = ""
    summary: str = ""
    is_connection_error: bool = False
    signal: int = 0

    @classmethod
    def of(cls, error: BaseException) -> "RankReport":
        """Describe an error."""
        when, output = time.monotonic(), io.StringIO()
        with contextlib.redirect_stderr(output):
            exit_code = cli.report(error)
        summary = ": ".join(dict.fromkeys([type(error).__name__, summarize(error)]))
        return cls(when, exit_code, output.getvalue(), summary, _is_connection_error(error))


def _is_connection_error(error: BaseException | None) -> bool:
    from torch.distributed import DistError

    while error is not None:
        if isinstance(error, DistError):
            return True
        if isinstance(error, RuntimeError | OSError) and BROKEN_CONNECTION.search(str(error)):
            return True
        error = error.__cause__
    return False


class SharedStatus:
    """Shared memory for one report per rank. Create it before the fork.

    Args:
        count: number of ranks.
    """

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, count * SLOT_BYTES)

    def write(self, rank: int, report: RankReport) -> None:
        """Write the report of a rank. The length is written last, so that no reader sees part of a report."""
        cut = report._replace(
            output=report.output[-MAX_CHARACTERS:], summary=report.summary[: MAX_CHARACTERS // 8]
        )
        text = json.dumps(cut).encode()
        start = rank * SLOT_BYTES
        body = start + LENGTH.size
        self._memory[body : body + len(text)] = text
        LENGTH.pack_into(self._memory, start, len(text))

    def read(self, rank: int) -> RankReport | None:
        """Return the report of a rank, None if there is none."""
        start = rank * SLOT_BYTES
        (length,) = LENGTH.unpack_from(self._memory, start)
        body = start + LENGTH.size
        return RankReport(*json.loads(self._memory[body : body + length])) if length else None
