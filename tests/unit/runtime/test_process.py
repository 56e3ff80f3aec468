"""Memory freed by a step is used again by the next one; a command shows that it loads."""

import os
import platform
import resource
import subprocess
import sys

import pytest
import torch

from project.runtime.process import keep_freed_memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


@glibc
def test_freed_memory_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LD_PRELOAD", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    assert keep_freed_memory()
    for _ in range(20):  # the heap grows by up to 8 blocks before the first is used again
        torch.ones(2**21)  # 8 MiB: 2,048 pages
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.ones(2**21)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 3 * 2048, "of 50 * 2,048"


@pytest.mark.parametrize("name", ["LD_PRELOAD", "GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"])
def test_settings_of_the_user_are_kept(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    assert not keep_freed_memory()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_a_command_shows_at_once_that_it_loads() -> None:
    code = (
        "from project.runtime.process import begin_command; begin_command(); "
        "from project.runtime.console import waiting; "
        "stack = waiting('reading runs'); stack.__enter__(); stack.__exit__(None, None, None)"
    )
    leader, follower = os.openpty()
    environment = os.environ | {"TERM": "xterm"}
    subprocess.run([sys.executable, "-c", code], stderr=follower, env=environment, check=True, timeout=60)
    assert os.read(leader, 1000).decode() == "loading …\rreading runs …\r\x1b[K"
    os.close(follower)
    os.close(leader)
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert piped.stdout == piped.stderr == b""
