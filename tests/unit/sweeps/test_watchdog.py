"""Tests of the limits of a job's duration and of its time without progress."""

import math
from pathlib import Path

import pytest

from project.sweeps import watchdog
from project.sweeps.watchdog import JobLimits, Watchdog


class Process:
    """Process that records how it is stopped."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def interrupt(self) -> None:
        self.calls.append("interrupt")

    def kill(self) -> None:
        self.calls.append("kill")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now_s = [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now_s[0])
    return now_s


def start(folder: Path, limits: JobLimits) -> tuple[Process, Watchdog]:
    process = Process()
    return process, Watchdog(process, folder, limits)  # type: ignore[arg-type]


def test_job_is_stuck_if_no_file_of_its_folder_changes(tmp_path: Path, clock: list[float]) -> None:
    process, dog = start(tmp_path, JobLimits(stuck_after_s=60, grace_s=10))
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    for size in range(5):  # progress for 250 s
        checkpoint.write_text("x" * size)
        clock[0] += 50
        dog.check()
    assert not dog.error
    clock[0] += 61
    dog.check()
    assert dog.error == "hydra.launcher.stuck_after_s=60: no file of the job's folder changed for 1 min 1 s"
    assert process.calls == ["interrupt"]
    clock[0] += 11
    checkpoint.write_text("saved at last")
    dog.check()
    assert process.calls == ["interrupt", "kill"]


def test_job_is_stopped_after_its_time(tmp_path: Path, clock: list[float]) -> None:
    process, dog = start(tmp_path, JobLimits(job_timeout_s=100))
    clock[0] = 100
    dog.check()
    assert not process.calls
    clock[0] = 101
    dog.check()
    assert dog.error == "hydra.launcher.job_timeout_s=100: the job took longer"
    assert process.calls == ["interrupt"]


def test_job_without_limits_is_never_stopped(tmp_path: Path, clock: list[float]) -> None:
    process, dog = start(tmp_path, JobLimits())
    clock[0] = 1e9
    dog.check()
    assert not process.calls
    assert dog.limits.stuck_after_s == math.inf
