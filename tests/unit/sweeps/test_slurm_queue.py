"""Tests of the states of SLURM's queue and of refused submissions, with recorded outputs of SLURM 22.05."""

from pathlib import Path

import pytest

from project.errors import InputError
from project.sweeps.launchers import slurm_queue
from project.sweeps.launchers.slurm_queue import (
    ArrayLimits,
    Refusals,
    SlurmQueue,
    cancel,
    explain_refusal,
    parse_max_tasks,
)

QUEUE = (
    "5|FAILED|BadConstraints\n3|PENDING|BeginTime\n8_1|COMPLETING|None\n1|RUNNING|None\n2|CANCELLED|None\n"
)
NO_CONTROLLER = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `squeue` that prints a file, and fails without it."""
    output = tmp_path / "output"
    command = tmp_path / "squeue"
    command.write_text(
        f"#!/bin/sh\n/bin/cat {output} 2>/dev/null || {{ echo '{NO_CONTROLLER}' >&2; exit 1; }}\n"
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return output


def test_requeued_and_unknown_jobs_are_held(squeue: Path) -> None:
    lines: list[str] = []
    queue = SlurmQueue(lines.append)
    assert queue.holds("1"), "before the first query"
    squeue.write_text(QUEUE)
    assert queue.query()
    assert [queue.holds(number) for number in ("1", "3", "8_1")] == [True] * 3
    assert [queue.holds(number) for number in ("2", "5", "4")] == [False] * 3
    assert [queue.is_ending(number) for number in ("8_1", "3")] == [True, False]
    queue.add("9")
    assert queue.holds("9"), "submitted after the query"
    assert not lines


def test_silent_controller_is_reported_once(squeue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_queue, "OUTAGE_INTERVAL_S", 0)
    lines: list[str] = []
    queue = SlurmQueue(lines.append)
    assert not queue.query()
    assert not queue.query()
    assert queue.holds("1")
    squeue.write_text(QUEUE)
    assert queue.query()
    assert not queue.holds("2")
    assert lines == [
        f"SLURM does not answer ({NO_CONTROLLER}); its jobs continue, and the sweep waits",
        "SLURM answers again",
    ]


def test_machine_without_slurm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="no squeue here; start the sweep where sbatch works"):
        SlurmQueue(print).query()


@pytest.mark.parametrize(
    ("error", "is_permanent"),
    [
        ("Batch job submission failed: Invalid partition name specified", True),
        ("Batch job submission failed: Invalid account or account/partition combination specified", True),
        ("Batch job submission failed: Invalid feature specification", True),
        ("Batch job submission failed: Requested node configuration is not available", True),
        ("Memory specification can not be satisfied", True),
        ("Batch job submission failed: Required partition not available (inactive or drain)", False),
        ("Batch job submission failed: Requested partition configuration not available now", False),
        (
            "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size "
            "and/or time limits)",
            False,
        ),
        ("Batch job submission failed: Unable to contact slurm controller (connect failure)", False),
        ("Batch job submission failed: Invalid authentication credential", False),
        ("Batch job submission failed: Socket timed out on send/recv operation", False),
    ],
)
def test_refusals_of_options_are_permanent(error: str, is_permanent: bool) -> None:
    raised = RuntimeError(f"Job failed:\nsbatch: error: {error}\n")
    assert explain_refusal(raised) == (error.removeprefix("Batch job submission failed: "), is_permanent)


def test_refused_submissions_pause_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(slurm_queue.time, "monotonic", lambda: clock[0])
    lines: list[str] = []
    refusals = Refusals(lines.append, limit_s=60)
    assert not refusals.are_pausing
    for pause_s in (5, 10, 20):
        assert refusals.add("drain", has_jobs=False)
        assert refusals.are_pausing
        clock[0] += pause_s
        assert not refusals.are_pausing
    assert refusals.add("drain", has_jobs=True), "the limit counts from the end of the sweep's jobs"
    clock[0] += 59
    assert refusals.add("drain", has_jobs=False)
    clock[0] += 2
    assert not refusals.add("drain", has_jobs=False)
    refusals.end()
    assert refusals.add("drain", has_jobs=False), "an accepted job starts the time again"
    first = "sbatch refuses a job (drain); repeated every 5.0 s to 5 min 0 s"
    assert lines == [first, "sbatch accepts jobs again", first]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands of SLURM, which are recorded instead of run."""
    recorded: list[list[str]] = []

    def record(command: list[str]) -> tuple[str, str]:
        recorded.append(command)
        return "", "MaxArraySize            = 1001\nMaxJobCount             = 10000\n"

    monkeypatch.setattr(slurm_queue, "run", record)
    return recorded


def test_arrays_share_the_limit_of_running_jobs(commands: list[list[str]]) -> None:
    limits = ArrayLimits(jobs=3)
    assert limits.room([]) == 3
    limits.add("7_0", 3)
    assert limits.room(["7_0", "7_1", "7_2", "7_3"]) == 0
    assert limits.room(["7_2", "7_3"]) == 1
    limits.add("8_0", 1)
    waiting = ["8_0", "8_1", "8_2", "8_3"]
    assert limits.room(["7_2", "7_3", *waiting]) == 0
    limits.update(["7_2", "7_3", *waiting])
    assert not commands
    limits.update(["7_3", *waiting])
    limits.update(waiting)
    assert [command[2:] for command in commands] == [
        ["JobId=8", "ArrayTaskThrottle=2"],
        ["JobId=8", "ArrayTaskThrottle=3"],
    ]
    assert limits.room(waiting) == 0


def test_arrays_of_an_earlier_process_get_their_limits_again(commands: list[list[str]]) -> None:
    limits = ArrayLimits(jobs=4)
    live = ["5", "7_4", "8_0", "8_1", "8_2"]
    assert limits.room(live) < 1
    limits.update(live)
    assert [command[2:] for command in commands] == [
        ["JobId=7", "ArrayTaskThrottle=1"],
        ["JobId=8", "ArrayTaskThrottle=2"],
    ]
    assert ArrayLimits(jobs=None).room(live) == float("inf")


def test_refused_arrays_are_halved(commands: list[list[str]]) -> None:
    limits = ArrayLimits(jobs=None)
    assert [limits.max_tasks(), limits.max_tasks()] == [1001, 1001]
    assert commands == [["scontrol", "show", "config"]]
    limits.shrink(7)
    assert limits.max_tasks() == 3
    limits.shrink(1)
    assert limits.max_tasks() == 1


@pytest.mark.parametrize(
    ("config", "tasks"),
    [
        ("MaxArraySize            = 1001", 1001),
        ("MaxArraySize            = 1001\nSchedulerParameters     = bf_interval=2,max_array_tasks=50", 50),
        ("MaxArraySize            = 0", 1),  # no arrays
        ("", 1),
    ],
)
def test_size_of_arrays_follows_the_configuration(config: str, tasks: int) -> None:
    assert parse_max_tasks(config) == tasks


def test_tasks_of_an_array_are_canceled_together(commands: list[list[str]]) -> None:
    cancel(["3", "7_0", "7_2", "8_1"])
    cancel([])
    assert commands == [["scancel", "--quiet", "3", "7_[0,2]", "8_[1]"]]
