"""Tests of runs started by torchrun or srun: one folder, one configuration and one log for all ranks."""

import json
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import forked_command
import pytest
from conftest import ROOT, read_table, slurm
from forked_command import ForkedCommand
from omegaconf import OmegaConf
from torch.distributed.run import main

TINY = (
    "model=mlp data=synthetic data.train_size=200 data.test_size=101 trainer.accelerator=cpu "
    "trainer.max_epochs=2"
)
PAIR = f"{TINY} trainer=ddp trainer.devices=1 trainer.num_nodes=2"
LIMIT_S = 240
VARIABLES = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_all(processes: Sequence[ForkedCommand]) -> list[tuple[int, str, str]]:
    """Wait for processes; return each exit code, standard output and standard error."""
    try:
        outputs = [process.communicate(timeout=LIMIT_S) for process in processes]
        return [(process.poll(), *output) for process, output in zip(processes, outputs, strict=True)]
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)  # on SIGTERM torchrun ends its workers, on SIGKILL not
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()


def torchrun(*options: str, arguments: str, cwd: Path) -> ForkedCommand:
    """Fork a torchrun agent, which starts its workers as new processes."""
    script = str(ROOT / "scripts" / "train.py")
    return ForkedCommand([], cwd, lambda: main([*options, script, *arguments.split()]), **VARIABLES)


def static_agents(arguments: str, cwd: Path) -> list[ForkedCommand]:
    port = free_port()
    return [
        torchrun(
            *("--nnodes=2", "--nproc-per-node=1", f"--node-rank={node}"),
            *("--master-addr=127.0.0.1", f"--master-port={port}"),
            arguments=arguments,
            cwd=cwd,
        )
        for node in range(2)
    ]


def dynamic_agents(arguments: str, cwd: Path) -> list[ForkedCommand]:
    port = free_port()
    return [
        torchrun(
            *("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=test"),
            *(f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1"),
            arguments=arguments,
            cwd=cwd,
        )
        for _ in range(2)
    ]


def losses(run: Path) -> list[float]:
    rows = read_table(run / "metrics.csv")
    return [float(row[name]) for name in ("train/loss", "val/loss") for row in rows if row[name]]


def only_run(cwd: Path) -> Path:
    (folder,) = cwd.glob("outputs/*/*")
    return folder


def losses_alone(cwd: Path, *more: str) -> list[float]:
    """Return the losses of the same run in one process."""
    cwd.mkdir()
    forked_command.run(*TINY.split(), *more, cwd=cwd)
    return losses(only_run(cwd))


def check_one_run(results: list[tuple[int, str, str]], run: Path) -> None:
    assert [code for code, _, _ in results] == [0, 0], results
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["ranks"], status["error"]) == ("done", 2, None)
    assert status["metrics"]["test/images"] == 101
    assert status["metrics"]["val/images"] == 20
    assert {path.name for path in (run / ".hydra").iterdir()} == {
        *("config.yaml", "hydra.yaml", "overrides.yaml")
    }
    curves_and_results = sorted(path.suffix == ".results" for path in run.glob("events.out*"))
    assert curves_and_results == [False, True]
    (spoken,) = [output for _, output, _ in results if output]  # only one process prints
    assert (run / "train.log").read_text().count("of 101 images") == spoken.count("of 101 images") == 1


@pytest.mark.slow
def test_two_nodes_train_one_run(tmp_path: Path) -> None:
    results = run_all(static_agents(PAIR, tmp_path))
    run = only_run(tmp_path)
    check_one_run(results, run)
    assert losses(run) == pytest.approx(losses_alone(tmp_path / "alone"), rel=1e-4)


@pytest.mark.slow
def test_dynamic_nodes_share_one_configuration(tmp_path: Path) -> None:
    results = run_all(dynamic_agents(f"{PAIR} seed='${{oc.decode:1${{now:%f}}}}'", tmp_path))
    run = only_run(tmp_path)
    check_one_run(results, run)
    seed = OmegaConf.load(run / "config.yaml").seed
    assert seed >= 1_000_000
    # A different seed on the second node would select different training images.
    assert losses(run) == pytest.approx(losses_alone(tmp_path / "alone", f"seed={seed}"), rel=1e-4)


@pytest.mark.slow
def test_wrong_input_is_reported_once_without_a_folder(tmp_path: Path) -> None:
    for mistake, line in (
        ("optim.lrr=1", "error: optim.lrr=1: no key optim.lrr; did you mean optim.lr?"),
        (
            "data.batch_size=9",
            "error: data.batch_size=9: not divisible by the number of devices (expected a multiple of 2, "
            "all devices together)",
        ),
    ):
        results = run_all(static_agents(f"{PAIR} {mistake}", tmp_path))
        assert all(code != 0 for code, _, _ in results)
        errors_shown = [text for _, _, errors in results for text in errors.splitlines() if "error:" in text]
        assert errors_shown == [line]
        assert not list(tmp_path.glob("outputs/*/*"))


@pytest.mark.slow
def test_number_of_devices_follows_torchrun_on_one_node(tmp_path: Path) -> None:
    one_node = ("--nproc-per-node=2", "--standalone", "--local-addr=127.0.0.1")
    ((code, output, errors),) = run_all([torchrun(*one_node, arguments=f"{TINY} trainer=ddp", cwd=tmp_path)])
    assert code == 0, errors
    status = json.loads((only_run(tmp_path) / "status.json").read_text())
    assert (status["state"], status["ranks"], status["metrics"]["test/images"]) == ("done", 2, 101)
    assert output.count("of 101 images") == 1


@pytest.mark.slow
def test_requeued_slurm_job_resumes_its_run(tmp_path: Path) -> None:
    port = str(free_port())

    def step(**more: str) -> list[tuple[int, str, str]]:
        tasks = [VARIABLES | slurm(rank, MASTER_PORT=port, **more) for rank in range(2)]
        return run_all([ForkedCommand([*TINY.split(), "trainer=ddp"], tmp_path, **task) for task in tasks])

    first = step()
    run = only_run(tmp_path)
    check_one_run(first, run)
    assert run.name == "slurm-4321.0"
    second = step(SLURM_RESTART_COUNT="1")
    assert [code for code, _, _ in second] == [0, 0], second
    assert only_run(tmp_path) == run
    (spoken,) = [output for _, output, _ in second if output]
    assert "2 epochs already trained" in spoken
