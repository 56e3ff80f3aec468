"""Sweeps on a real SLURM of one node, without accounting: requeues, cancellations, refusals and kills."""

import signal
from collections.abc import Iterator
from pathlib import Path

import loopback_slurm
import pytest
from conftest import ROOT
from loopback_slurm import SlurmCluster
from slurm_cluster import LAUNCHER, TINY, Sweep, sweep

TRAIN = ROOT / "scripts" / "train.py"


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    pytest.importorskip("submitit")
    try:
        with loopback_slurm.running() as cluster:
            yield cluster
    except loopback_slurm.CannotStartError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", autouse=True)
def limited(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    """A sweep whose job reaches its time limit during the other tests."""
    options = ["optim.lr=0.1", "hydra.launcher.timeout_min=2"]
    with sweep(cluster, tmp_path_factory.mktemp("limited"), "-m", *TINY, *LAUNCHER, *options) as running:
        running.wait_for_starts((0.1, 1))
        yield running


def test_requeued_jobs_run_again_as_the_same_jobs(cluster: SlurmCluster, tmp_path: Path) -> None:
    with sweep(cluster, tmp_path, "-m", *TINY, *LAUNCHER, "optim.lr=0.1,0.2") as running:
        running.wait_for_starts((0.1, 1), (0.2, 1))
        assert cluster.open_addresses() == []
        numbers = list(running.slurm_states)
        cluster.command("scontrol", "requeue", numbers[0])
        cluster.command("scancel", "--signal=USR2", numbers[1])  # as SLURM does before a time limit
        running.wait_for_starts((0.1, 2), (0.2, 2))
        assert running.states == ["running"] * 2
        running.release()
        shown = running.end()
    assert running.process.returncode == 0, shown
    assert "SLURM does not answer" not in shown
    assert [running.starts(lr) for lr in (0.1, 0.2)] == [[number] * 2 for number in numbers]
    assert [(job.state, job.attempts) for job in running.folder.ledger.read().values()] == [("done", 1)] * 2


def test_killed_sweep_adopts_a_requeued_job(cluster: SlurmCluster, tmp_path: Path) -> None:
    with sweep(cluster, tmp_path, "-m", *TINY, *LAUNCHER, "optim.lr=0.1") as first:
        first.wait_for_starts((0.1, 1))
        first.process.kill()
        (number,) = first.slurm_states
        cluster.command("scontrol", "requeue", number)
        with sweep(cluster, tmp_path, f"resume={first.folder.path}") as second:
            second.wait_for_starts((0.1, 2))
            cluster.stop_controller()
            log = second.folder.log_file
            cluster.wait(lambda: "SLURM does not answer" in log.read_text(), second.process)
            cluster.start_controller()
            second.release()
            shown = second.end()
        assert second.process.returncode == 0, shown
        assert second.starts(0.1) == [number] * 2
        assert not second.slurm_states, "no second job was submitted"
        assert second.states == ["done"]


def test_jobs_that_somebody_cancels_are_interrupted(cluster: SlurmCluster, tmp_path: Path) -> None:
    jobs = ["optim.lr=0.1,0.2", "hydra.launcher.cpus_per_task=3"]  # one at a time
    with sweep(cluster, tmp_path, "-m", *TINY, *LAUNCHER, *jobs) as running:
        running.wait_for_starts((0.1, 1))
        cluster.wait(lambda: sorted(running.slurm_states.values()) == ["PENDING", "RUNNING"])
        (pending,) = (number for number, state in running.slurm_states.items() if state == "PENDING")
        cluster.command("scancel", pending)
        cluster.wait(lambda: running.states == ["running", "interrupted"], running.process)
        cluster.command("scancel", *running.slurm_states)
        shown = running.end()
    assert running.process.returncode == 1, shown
    assert running.states == ["interrupted"] * 2
    assert "2 of 2 jobs left; resume=" in shown


def test_job_arrays_share_the_limit_of_running_jobs(cluster: SlurmCluster, tmp_path: Path) -> None:
    jobs = ["optim.lr=0.1,0.2,0.3,0.4", "hydra.launcher.array=true", "hydra.launcher.jobs=2"]
    with sweep(cluster, tmp_path, "-m", *TINY, *LAUNCHER, *jobs) as first:
        first.wait_for_starts((0.1, 1), (0.2, 1))
        one, two = sorted(first.slurm_states)  # MaxArraySize=2: the others are in a second array
        assert (one.partition("_")[2], two.partition("_")[2]) == ("0", "1")
        cluster.command("scontrol", "requeue", one)
        cluster.command("scancel", "--signal=USR2", two)  # as SLURM does before a time limit
        first.process.kill()
        with sweep(cluster, tmp_path, f"resume={first.folder.path}") as second:
            second.wait_for_starts((0.1, 2), (0.2, 2))
            assert not second.slurm_states, "the running jobs reach the limit"
            second.release(0.1)
            second.wait_for_starts((0.3, 1))
            three, four = sorted(second.slurm_states)
            assert cluster.states()[four] == "PENDING"
            assert second.starts(0.4) == []
            second.release(0.2)
            second.wait_for_starts((0.4, 1))
            second.release()
            shown = second.end()
    assert second.process.returncode == 0, shown
    assert second.states == ["done"] * 4
    starts = [second.starts(lr) for lr in (0.1, 0.2, 0.3, 0.4)]
    assert starts == [[one] * 2, [two] * 2, [three], [four]]


def test_ctrl_c_cancels_an_array(cluster: SlurmCluster, tmp_path: Path) -> None:
    jobs = ["optim.lr=0.1,0.2,0.3", "hydra.launcher.array=true", "hydra.launcher.jobs=1"]
    with sweep(cluster, tmp_path, "-m", *TINY, *LAUNCHER, *jobs) as running:
        running.wait_for_starts((0.1, 1))
        assert sorted(running.slurm_states.values()) == ["PENDING", "RUNNING"]
        running.process.send_signal(signal.SIGINT)
        shown = running.end()
        cluster.wait(lambda: set(running.slurm_states.values()) == {"CANCELLED"})
    assert running.process.returncode == 130, shown
    assert running.states == ["interrupted"] * 3
    assert len(running.slurm_states) == 2, "the third job was never submitted"


def test_refused_submission_is_repeated(cluster: SlurmCluster, tmp_path: Path) -> None:
    jobs = ["optim.lr=0.1,0.2,0.3", "hydra.launcher.jobs=1", "hydra.launcher.submit_timeout_min=0.2"]
    with sweep(cluster, tmp_path, "-m", *TINY, *LAUNCHER, *jobs) as running:
        running.wait_for_starts((0.1, 1))
        partition = ("scontrol", "update", "PartitionName=main")
        cluster.command(*partition, "State=DRAIN")
        running.release()
        log = running.folder.log_file
        try:
            cluster.wait(lambda: "sbatch refuses a job" in log.read_text(), running.process)
            cluster.command(*partition, "State=UP")
            cluster.wait(lambda: "sbatch accepts jobs again" in log.read_text(), running.process)
            cluster.command(*partition, "State=DRAIN")
            shown = running.end()
        finally:
            cluster.command(*partition, "State=UP")
    assert running.states == ["done", "done", "waiting"], shown
    assert "no more jobs are started: hydra.launcher.submit_timeout_min=0.2: sbatch still refuses" in shown
    assert "1 of 3 jobs left; resume=" in shown
    assert running.process.returncode == 1


def test_ctrl_c_cancels_a_ddp_job(cluster: SlurmCluster, tmp_path: Path) -> None:
    ranks = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    jobs = [*ranks, "trainer.max_epochs=100000", "~callbacks.early_stopping", "optim.lr=0.1"]
    with sweep(cluster, tmp_path, "-m", *TINY, *LAUNCHER, *jobs, script=TRAIN) as running:
        cluster.wait(lambda: list(tmp_path.glob("outputs/sweep/*/*/checkpoints/last.ckpt")), running.process)
        running.process.send_signal(signal.SIGINT)
        shown = running.end()
        cluster.wait(lambda: set(running.slurm_states.values()) == {"CANCELLED"})
    assert running.process.returncode == 130, shown
    assert running.states == ["interrupted"]


def test_job_at_its_time_limit_is_requeued(limited: Sweep) -> None:
    limited.cluster.wait(lambda: len(limited.starts(0.1)) > 1, limited.process)
    limited.release()
    shown = limited.end()
    assert limited.process.returncode == 0, shown
    assert len(set(limited.starts(0.1))) == len(limited.slurm_states.keys() & set(limited.starts(0.1))) == 1
    assert limited.states == ["done"]
