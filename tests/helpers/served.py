"""A running `serve` command, and clients of it, for tests."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from conftest import ROOT

TIMEOUT_S = 90.0
"""Generous, for a busy machine."""


class Served:
    """Process of a server and its address."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    def stop(self) -> str:
        """Stop the server as a container does; return what it printed last."""
        self.process.terminate()
        output, _ = self.process.communicate(timeout=TIMEOUT_S)
        assert self.process.returncode == 0, output
        return output.splitlines()[-1]


@contextlib.contextmanager
def serving(run: Path | str, *words: str, environment: dict[str, str] | None = None) -> Iterator[Served]:
    """Start `scripts/serve.py` on a free port, wait until it answers, and end it."""
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), f"run={run}"]
    if not any(word.startswith("port=") for word in words):
        command.append("port=0")
    with subprocess.Popen(
        [*command, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
    ) as process:
        try:
            assert process.stdout is not None
            lines = []
            while " http://" not in (line := process.stdout.readline()):
                lines.append(line)
                assert line, "".join(lines)
            url = "http://" + line.split(" http://")[1].split("/")[0].strip()
            wait_until_ready(url)
            yield Served(process, url)
        finally:
            process.kill()


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=TIMEOUT_S).status_code in (200, 401):
                return
        time.sleep(0.1)
    raise AssertionError("the server is not ready")
