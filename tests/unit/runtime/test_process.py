"""Memory freed by a step is used again by the next one."""

import platform
import resource

import pytest
import torch

from project.runtime.process import keep_freed_memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


@glibc
def test_freed_memory_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LD_PRELOAD", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    assert keep_freed_memory()
    for _ in range(3):
        torch.ones(2**21)  # 8 MiB: 2,048 pages
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.ones(2**21)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 3 * 2048, "of 50 * 2,048"


@pytest.mark.parametrize("name", ["LD_PRELOAD", "GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"])
def test_settings_of_the_user_are_kept(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    assert not keep_freed_memory()
