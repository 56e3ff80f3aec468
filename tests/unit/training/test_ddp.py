"""Tests of the ranks' supervisor: failures, stop signals and reports."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from project.errors import DataError, InputError
from project.runtime import signals
from project.runtime.devices import count_gpus
from project.runtime.signals import Stopped
from project.training.ddp import supervisor
from project.training.ddp.launch import run_ranks
from project.training.ddp.rank_processes import RankReport, SharedStatus
from project.training.ddp.supervisor import RankFailedError


def rank() -> int:
    return int(os.environ["RANK"])


def sleep_forever() -> None:
    while True:
        time.sleep(0.05)


def children() -> set[int]:
    """Return the ids of this process's children."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


@pytest.fixture
def require_no_child_processes() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


pytestmark = pytest.mark.usefixtures("require_no_child_processes")


def fails_alone() -> None:
    if rank() == 1:
        raise ArithmeticError("made to fail")
    sleep_forever()


def fails_after_another_was_killed() -> None:
    if rank() == 1:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.19)  # the parent may detect this exit first
    raise RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:4711")


def ends_with_a_code() -> None:
    if rank() == 0:
        os._exit(9)
    sleep_forever()


@pytest.mark.parametrize(
    ("work", "line", "code"),
    [
        (fails_alone, "rank 1 of 2: ArithmeticError: made to fail", 1),
        (
            fails_after_another_was_killed,
            "rank 1 of 2 was killed by SIGKILL, perhaps for lack of memory",
            137,
        ),
        (ends_with_a_code, "rank 0 of 2 ended with exit code 9", 9),
    ],
)
def test_first_failure_is_reported_and_other_ranks_end(
    work: Callable[[], None], line: str, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    with pytest.raises(RankFailedError, match=r"rank [01] of 2") as caught:
        run_ranks(work, 2)
    assert time.monotonic() - began < 10
    assert (str(caught.value), caught.value.exit_code) == (line, code)
    printed = capfd.readouterr().err
    assert printed.count("Traceback") == (work is fails_alone)
    assert "Connection closed" not in printed


@pytest.mark.parametrize("kind", [InputError, DataError])
def test_error_on_all_ranks_is_reported_once(
    kind: type[InputError], capfd: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise kind("this file is damaged\nthat one too")

    with pytest.raises(kind, match=r"^this file is damaged\nthat one too$") as caught:
        run_ranks(work, 2)
    assert type(caught.value) is kind
    assert capfd.readouterr().err == ""


def send_signals(*numbers: int, apart_s: float = 1.0) -> threading.Thread:
    """Send signals to this process from a thread, the first after one second."""

    def send() -> None:
        for number in numbers:
            time.sleep(apart_s)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def trains(seconds: float) -> Callable[[], None]:
    """Return a function that simulates a training whose step takes `seconds`."""

    def work() -> None:
        with signals.raise_on_signal(), signals.defer_signals():
            while not signals.requested():
                time.sleep(0.05)
            time.sleep(seconds)
            raise Stopped(signals.requested())

    return work


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "step_s", "least_s", "most_s"),
    [
        ([signal.SIGTERM], 1.0, 1.5, 8),  # the step finishes within the grace period
        ([signal.SIGUSR1], 4.0, 4.5, 12),  # no deadline after SIGUSR1
        ([signal.SIGUSR1, signal.SIGTERM], 60.0, 4.5, 14),  # SLURM's time limit; the run is requeued
        ([signal.SIGINT, signal.SIGINT], 60.0, 1.5, 8),  # a repeated signal kills the ranks
        ([signal.SIGTERM], 60.0, 3.5, 12),  # the grace period is exceeded
    ],
)
def test_training_ranks_finish_their_step_after_a_signal(
    sent: list[signal.Signals],
    step_s: float,
    least_s: float,
    most_s: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "SAVE_GRACE_S", 3.0)
    thread, began = send_signals(*sent), time.monotonic()
    with pytest.raises(Stopped, match="stopped by SIG") as caught:
        run_ranks(trains(step_s), 2)
    thread.join()
    assert caught.value.signum == sent[0]
    assert least_s < time.monotonic() - began < most_s


@pytest.mark.slow
def test_run_that_finishes_before_a_signal_succeeds() -> None:
    def work() -> None:
        with signals.raise_on_signal():
            signals._set_deferred(True)
            time.sleep(2.0)

    thread = send_signals(signal.SIGUSR1)
    run_ranks(work, 2)
    thread.join()


def test_ranks_that_do_not_train_exit_at_once() -> None:
    thread, began = send_signals(signal.SIGTERM), time.monotonic()
    with pytest.raises(Stopped, match="stopped by SIG") as caught:
        run_ranks(sleep_forever, 2)
    thread.join()
    assert caught.value.code == 143
    assert time.monotonic() - began < 8


@pytest.mark.slow
def test_repeated_signal_within_a_short_time_counts_once() -> None:
    thread, began = send_signals(signal.SIGTERM, signal.SIGTERM, apart_s=0.2), time.monotonic()
    with pytest.raises(Stopped, match="stopped by SIG"):
        run_ranks(trains(2.0), 2)
    thread.join()
    assert time.monotonic() - began > 1.5


def test_reports_of_any_length_are_read_back() -> None:
    reports = SharedStatus(2)
    assert reports.read(1) is None
    reports.write(
        1, RankReport(1.5, 3, "\N{GRINNING FACE}" * 100_000, "é" * 10_000, is_connection_error=True)
    )
    found = reports.read(1)
    assert found is not None
    assert found[:2] == (1.5, 3)
    assert found.output.endswith("\N{GRINNING FACE}" * 1000)
    assert reports.read(0) is None


def test_gpus_are_counted_without_initializing_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_by = []
    monkeypatch.setattr(torch.cuda, "_is_compiled", lambda: True)
    monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: -1)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: asked_by.append(os.getpid()) or 3)
    assert count_gpus() == 3
    assert asked_by == []  # CUDA is queried only in another process
    monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: 3)
    assert count_gpus() == 3
    assert asked_by == [os.getpid()]
