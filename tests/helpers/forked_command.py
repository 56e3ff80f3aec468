"""Commands with the interface of `subprocess.Popen`, forked from this process to save import time."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import forked_attempts


class ForkedCommand:
    """Command in a forked process with captured output; killed at the end of a `with` block.

    Args:
        arguments: arguments of `scripts/train.py`.
        cwd: working directory.
        command: function to call instead of the script.
        streams: file descriptors of standard output and error (default None: captured).
        variables: environment variables to add.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path,
        command: Callable[[], object] | None = None,
        streams: tuple[int, int] | None = None,
        **variables: str,
    ) -> None:
        self.returncode: int | None = None
        self._kept = [] if streams else [os.memfd_create(name) for name in ("output", "errors")]
        self._texts: tuple[str, ...] = ()
        streams = streams or (self._kept[0], self._kept[1])
        self.pid = forked_attempts.start(
            arguments, cwd, variables=variables, streams=streams, command=command
        )

    def poll(self) -> int | None:
        """Return the exit code, negative for the signal that killed the process; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
                self._texts = tuple(os.pread(kept, os.fstat(kept).st_size, 0).decode() for kept in self._kept)
                for kept in self._kept:
                    os.close(kept)
        return self.returncode

    def wait(self, timeout: float = forked_attempts.LIMIT_S) -> int:
        """Wait for the process to end; return its exit code."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = forked_attempts.LIMIT_S) -> tuple[str, str]:
        """Wait for the process to end; return its standard output and error."""
        self.wait(timeout)
        output, errors = self._texts
        return output, errors

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to this process alone."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill this process alone."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "ForkedCommand":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self.wait()


def run(*arguments: str, cwd: Path, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command and wait for it to end, as `subprocess.run` does.

    Raises:
        AssertionError: the exit code is not `code`.
    """
    with ForkedCommand(arguments, cwd, **variables) as process:
        output, errors = process.communicate()
    assert process.returncode == code, output + errors
    return subprocess.CompletedProcess(arguments, code, output, errors)
