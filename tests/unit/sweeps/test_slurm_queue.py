"""Tests of the states of SLURM's queue and of refused submissions, with recorded outputs of SLURM 22.05."""

from pathlib import Path

import pytest

from project.errors import InputError
from project.sweeps.launchers import slurm_queue
from project.sweeps.launchers.slurm_queue import Refusals, SlurmQueue, explain_refusal

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
