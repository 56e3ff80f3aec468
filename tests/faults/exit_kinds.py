"""Ends of processes. Imports the standard library only, for tests that must not import torch."""

import os
import signal
import time


def wait_for_end(pid: int, limit_s: float) -> int | None:
    """Return the exit code of a child process, negative for a signal; kill the child after `limit_s`.

    Returns:
        The exit code, None if the child was killed here.
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
