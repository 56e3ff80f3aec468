"""A job below a process that belongs to a cluster.

The cluster's process (submitit's, a Ray worker) has signal handlers and threads of its own, so the job gets
a fresh process, from which it can fork its ranks. The two end together.
"""

import os
import signal
import time
from contextlib import suppress

from project.sweeps.job_process import Letter
from project.sweeps.process_engine import start_fresh

POLL_S = 0.05


class Nested:
    """A job in a process below this one.

    Args:
        letter: what it is told.
    """

    def __init__(self, letter: Letter) -> None:
        self.process = start_fresh(letter)
        self._code: int | None = None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Return the job's exit code, None if it runs on after the time-out."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (code := self._poll()) is None and (deadline is None or time.monotonic() < deadline):
            time.sleep(POLL_S)
        return code

    def stop(self, grace_s: float) -> None:
        """Interrupt the job, and kill it if it has not ended after a grace. May be called again."""
        if self._poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.process, signal.SIGINT)
            if self.wait(grace_s) is None:
                self._kill_group()
                self.wait()

    def _poll(self) -> int | None:
        if self._code is None:
            try:
                pid, status = os.waitpid(self.process, os.WNOHANG)
            except ChildProcessError:  # a signal's handler has waited for it
                pid, status = self.process, -signal.SIGKILL
            if pid:
                self._code = os.waitstatus_to_exitcode(status) if status >= 0 else status
                self._kill_group()  # what it may have left behind
        return self._code

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process, signal.SIGKILL)


def run_below(letter: Letter, grace_s: float) -> int:
    """Run a job below this process; return its exit code.

    Args:
        letter: what the job is told.
        grace_s: seconds that it has to stop when this process is interrupted.
    """
    nested = Nested(letter)
    try:
        code = nested.wait()
        assert code is not None
        return code
    finally:
        nested.stop(grace_s)
