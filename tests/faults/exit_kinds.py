"""How processes end. Imports nothing that a trial may have to be without."""

import os
import signal
import time


def wait_for_end(pid: int, limit_s: float) -> int | None:
    """Wait for a child's end; return its exit code, negative for the signal that killed it.

    None: it had not ended in time, and was killed.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None
