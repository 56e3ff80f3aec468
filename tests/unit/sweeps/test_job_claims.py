"""Tests of the claims by which several processes share the jobs of a sweep."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from project.runs.run_folder import RunFolder
from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import Job
from project.sweeps import job_claims
from project.sweeps.device_slots import DeviceRequest
from project.sweeps.engine import Engine, JobExit
from project.sweeps.job_claims import (
    HEARTBEAT,
    OWNER,
    JobClaims,
    JoinedJobs,
    JoinedLedger,
    LostClaimError,
    SharedEngine,
)
from project.sweeps.job_order import JobOrder
from project.sweeps.job_process import JobSpec, TaskReference


class RecordingEngine(Engine):
    """Engine whose jobs never end."""

    def __init__(self) -> None:
        self.started: list[int] = []

    def has_capacity(self) -> bool:
        return True

    def start(self, spec: JobSpec) -> bool:
        self.started.append(spec.number)
        return True

    def wait(self, timeout_s: float) -> list[JobExit]:
        return []

    def interrupt(self) -> None:
        pass

    def kill(self) -> None:
        pass


def spec(folder: Path, number: int) -> JobSpec:
    config = OmegaConf.create({"ckpt_path": None})
    return JobSpec(number, [], config, folder / str(number), TaskReference("", ""), DeviceRequest(1))


def age(claims: JobClaims, seconds: float) -> None:
    """Make a worker's heartbeat older."""
    file = claims.folder / claims.worker / HEARTBEAT
    os.utime(file, (file.stat().st_mtime - seconds,) * 2)


@pytest.fixture(autouse=True)
def _poll_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_claims, "POLL_S", -1.0)


def test_a_job_has_one_holder(tmp_path: Path) -> None:
    owner, other = JobClaims(tmp_path, OWNER), JobClaims(tmp_path)
    with owner.active():
        with other.active():
            assert owner.claim(0)
            assert not other.claim(0)
            assert owner.claim(0), "a resumed sweep keeps its claims"
            assert other.claim(1)
            assert [owner.holder(number) for number in (0, 1, 2)] == [OWNER, other.worker, ""]
            other.release(1)
            assert owner.claim(1)
        assert [place.name for place in (tmp_path / ".claims").iterdir() if place.is_dir()].count(OWNER) == 1
        assert not owner.is_alive(other.worker)
    assert not (tmp_path / ".claims").exists()


def test_a_worker_is_dead_after_its_lease(tmp_path: Path) -> None:
    owner, local, remote = JobClaims(tmp_path, OWNER), JobClaims(tmp_path), JobClaims(tmp_path, "elsewhere-1")
    with owner.active(), remote.active():
        with local.active():
            age(local, 100)
            assert owner.is_alive(local.worker), "it holds its lock"
            age(local, 1000)
            assert not owner.is_alive(local.worker), "it is suspended"
        (place := tmp_path / ".claims" / local.worker).mkdir()
        (place / HEARTBEAT).touch()
        assert owner.is_alive(local.worker)
        age(local, 100)
        assert not owner.is_alive(local.worker), "its lock is free"
        age(remote, 100)
        assert owner.is_alive(remote.worker)
        age(remote, 1000)
        assert not owner.is_alive(remote.worker)


def test_the_sweep_follows_jobs_of_other_workers_and_takes_them_back(tmp_path: Path) -> None:
    owner, other = JobClaims(tmp_path, OWNER), JobClaims(tmp_path, "elsewhere-1")
    inner = RecordingEngine()
    engine = SharedEngine(inner, owner)
    with owner.active(), other.active():
        for number in (1, 2, 3):
            assert other.claim(number)
        for number in range(4):
            assert engine.reattach(spec(tmp_path, number)) is (number > 0)
            assert engine.start(spec(tmp_path, number))
        assert inner.started == [0]
        ledger = JoinedLedger(tmp_path / "jobs.jsonl", other)
        ledger.write(Job(1, [], [], "1", state="running"))
        assert engine.wait(0) == []
        ledger.write(Job(1, [], [], "1", state="failed", error="no", duration_s=2.0))
        assert engine.wait(0) == [JobExit(1, 1, 2.0, "no")]
        age(other, 1000)
        (tmp_path / "2").mkdir()
        RunFolder(tmp_path / "2").write_status(state="done")
        assert engine.wait(0) == [JobExit(2, 0)], "it has ended without leaving its result"
        assert inner.started == [0, 3]
        assert owner.holder(3) == OWNER
        assert RunFolder(tmp_path / "3").read_status()["state"] == "starting"


def test_a_stopped_sweep_leaves_jobs_to_other_workers(tmp_path: Path) -> None:
    owner, other = JobClaims(tmp_path, OWNER), JobClaims(tmp_path)
    engine = SharedEngine(RecordingEngine(), owner)
    with other.active():
        with owner.active():
            assert owner.claim(0)
            assert other.claim(1)
            engine.reattach(spec(tmp_path, 1))
            engine.interrupt()
            assert engine.wait(0) == [JobExit(1, None)]
        assert [other.holder(number) for number in (0, 1)] == ["", other.worker]


def test_a_worker_that_lost_a_job_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_claims, "HEARTBEAT_S", -1.0)
    owner, other = JobClaims(tmp_path, OWNER), JobClaims(tmp_path)
    engine = SharedEngine(RecordingEngine(), other)
    with owner.active(), other.active():
        assert not engine.reattach(spec(tmp_path, 5))
        assert engine.start(spec(tmp_path, 5))
        engine.wait(0)
        owner.release(5)
        assert owner.claim(5)
        with pytest.raises(LostClaimError, match="job 5: given to another process"):
            engine.wait(0)


def test_a_joined_process_gets_waiting_jobs_that_nobody_claimed(tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path)
    jobs = [Job(number, [], [], str(number)) for number in range(5)]
    sweep.ledger.write(*jobs)
    owner, other = JobClaims(tmp_path, OWNER), JobClaims(tmp_path)
    source = JoinedJobs(sweep, other, jobs)
    with other.active():
        assert source.next_job() is None, "the sweep does not run"
        with owner.active():
            assert owner.claim(0)
            sweep.ledger.write(Job(1, [], [], "1", state="done"))  # after the jobs were read
            (tmp_path / "2").mkdir()
            sweep.run("2").write_status(state="done")  # not recorded yet
            assert [source.next_job(), source.next_job(), source.next_job()] == [jobs[3], jobs[4], None]
            assert [other.holder(number) for number in (1, 2)] == ["", ""]


def test_a_joined_process_takes_the_longest_job_by_the_record_of_all(tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path)
    jobs = [Job(number, [], [f"model={'mlp' if number % 2 else 'cnn'}"], str(number)) for number in range(6)]
    sweep.ledger.write(*jobs)
    owner, other = JobClaims(tmp_path, OWNER), JobClaims(tmp_path)
    source = JoinedJobs(sweep, other, jobs, JobOrder(longest_first=True))
    with owner.active(), other.active():
        for job, seconds in ((jobs[0], 5.0), (jobs[1], 50.0)):  # by the owner, after this process joined
            sweep.ledger.write(replace(job, state="done", started="now", attempts=1, duration_s=seconds))
        numbers = [job.number for _ in range(4) if (job := source.next_job()) is not None]
    assert numbers == [3, 5, 2, 4]
