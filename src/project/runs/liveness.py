"""Whether the process that a run's status names is still at work."""

import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

ENDING_S = 2.0
"""Seconds that a process is given which may be about to end: ranks outlive a killed parent by moments."""


def working_process(status: Mapping[str, Any]) -> int | None:
    """Process id of a run that goes on, on this machine; None if it has ended, or runs elsewhere.

    Args:
        status: of the run's folder.
    """
    if status.get("state") != "running" or status.get("host") != platform.node() or "pid" not in status:
        return None
    pid = int(status["pid"])
    deadline = time.monotonic() + ENDING_S
    while _is_alive(pid, status.get("started", "")):
        if time.monotonic() > deadline:
            return pid
        time.sleep(0.05)
    return None


def _is_alive(pid: int, started: str) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:  # there is none, or it is another user's, and so another one
        return False
    with suppress(OSError, ValueError, IndexError):  # where there is no /proc the number has to do
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] in "ZX":
            return False
        began = _boot_time() + int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return began <= datetime.fromisoformat(started).timestamp() + 1  # else the number was given anew
    return True


def _boot_time() -> float:
    lines = Path("/proc/stat").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("btime")))
