"""Environment variables of torchrun and SLURM: ranks, folder names, mistakes."""

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
from conftest import Compose, slurm
from omegaconf import DictConfig, OmegaConf

from project.errors import InputError
from project.runtime import torchrun
from project.runtime.process import silence_libraries
from project.runtime.secrets import redact


def hydra_node(folder: str, *overrides: str) -> DictConfig:
    return OmegaConf.create({"run": {"dir": folder}, "overrides": {"hydra": list(overrides)}})


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Yield a function that replaces the environment variables of torchrun and SLURM."""

    def become(**variables: str) -> None:
        for name in list(os.environ):
            if name.startswith("SLURM_") or name in (*torchrun.VARIABLES, "GROUP_RANK", "GROUP_WORLD_SIZE"):
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    monkeypatch.setattr(os, "environ", os.environ.copy())
    become()
    return become


def test_slurm_variables_become_torchrun_variables(environment: Callable[..., None]) -> None:
    environment(
        **slurm(5, SLURM_NTASKS="8", SLURM_STEP_NUM_TASKS="6", SLURM_STEP_TASKS_PER_NODE="2(x3)"),
        SLURM_JOB_NODELIST="other",
    )
    os.environ |= {"SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_STEP_NODELIST": "gpu[03-04,7],cpu1"}
    del os.environ["MASTER_ADDR"]
    torchrun.set_variables_from_slurm()
    assert torchrun.environment() == torchrun.Environment(5, 6, 2, num_nodes=3)
    assert [os.environ[name] for name in ("LOCAL_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")] == [
        *("1", "2", "gpu03", "19321")
    ]


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [("a", "a"), ("a,b", "a"), ("n[5-9]", "n5"), ("n[05,07-9]-ib,m[1-2]", "n05-ib"), ("n[3]", "n3")],
)
def test_the_first_host_of_a_node_list(nodelist: str, host: str) -> None:
    assert torchrun.first_host(nodelist) == host


def test_a_single_slurm_task_has_no_ranks(environment: Callable[..., None]) -> None:
    environment(**slurm(0, SLURM_NTASKS="1", SLURM_STEP_NUM_TASKS="1"))
    torchrun.set_variables_from_slurm()
    assert torchrun.environment() is None
    assert torchrun.run_folder(hydra_node("outputs/x/now")) == Path("outputs/x/now")


def test_machines_with_different_numbers_of_tasks_are_refused(environment: Callable[..., None]) -> None:
    environment(**slurm(0, SLURM_STEP_NUM_TASKS="3", SLURM_STEP_TASKS_PER_NODE="2,1"))
    with pytest.raises(InputError, match=r"srun started 2,1 tasks .*--ntasks-per-node=2"):
        torchrun.set_variables_from_slurm()


def test_a_slurm_run_is_named_after_its_job_and_found_again(
    environment: Callable[..., None], tmp_path: Path
) -> None:
    environment(**slurm(0, SLURM_STEP_ID="3"))
    torchrun.set_variables_from_slurm()
    node = hydra_node(f"{tmp_path}/cnn_digits/now", "hydra.verbose=true")
    folder = tmp_path / "cnn_digits" / "slurm-4321.3"
    assert torchrun.run_folder(node) == folder
    assert torchrun.run_folder(hydra_node("mine", "hydra.run.dir=mine")) == Path("mine")
    folder.mkdir(parents=True)
    own = {"slurm_job": "4321", "command": redact(sys.argv), "started": "1"}
    (folder / "status.json").write_text(json.dumps(own))
    assert torchrun.find_restarted_run(node) is None
    os.environ["SLURM_RESTART_COUNT"] = "1"
    assert torchrun.find_restarted_run(node) == folder
    assert torchrun.find_restarted_run(hydra_node(str(folder), f"hydra.run.dir={folder}")) == folder
    another_step = {**own, "started": "2"}
    (tmp_path / "cnn_digits" / "slurm-4321.30").mkdir()
    (tmp_path / "cnn_digits" / "slurm-4321.30" / "status.json").write_text(json.dumps(another_step))
    assert torchrun.find_restarted_run(node) == folder
    (folder / "status.json").write_text("{}")  # an unrelated folder of that name
    assert torchrun.find_restarted_run(node) is None


def test_torchrun_in_a_batch_script_finds_its_run_again(
    environment: Callable[..., None], tmp_path: Path
) -> None:
    variables = slurm(0)
    environment(**{name: variables[name] for name in variables if name != "SLURM_STEP_ID"})
    for name in torchrun.VARIABLES:
        os.environ[name] = "1"
    os.environ |= {"RANK": "0", "SLURM_RESTART_COUNT": "1"}
    (tmp_path / "before").mkdir()
    status = {"slurm_job": "4321", "command": redact(sys.argv), "started": "1"}
    (tmp_path / "before" / "status.json").write_text(json.dumps(status))
    assert torchrun.find_restarted_run(hydra_node(f"{tmp_path}/now")) == tmp_path / "before"


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        ("trainer.devices=2 trainer.num_nodes=3", []),
        ("trainer=ddp trainer.num_nodes=3", []),
        ("trainer.devices=[0,1] trainer.num_nodes=3", []),
        (
            "trainer.devices=4",
            [
                "trainer.devices=4: the number of processes per node is 2; set trainer.devices=2",
                "trainer.num_nodes=1: the processes run on 3 nodes; set trainer.num_nodes=3",
            ],
        ),
    ],
)
def test_the_configuration_must_match_the_processes(
    environment: Callable[..., None], composed: Compose, overrides: str, lines: list[str]
) -> None:
    environment(**dict.fromkeys(torchrun.VARIABLES, "0") | {"WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2"})
    config = composed(*overrides.split())
    found = list(torchrun.find_mismatch(config))
    assert len(found) == len(lines)
    assert all(text.startswith(line) for text, line in zip(found, lines, strict=True))
    assert lines or config.trainer.devices in (2, [0, 1])
    with pytest.raises(InputError, match="-m: torchrun and srun start the processes of one run"):
        torchrun.refuse_sweep()


def test_one_node_is_singular(environment: Callable[..., None], composed: Compose) -> None:
    environment(**dict.fromkeys(torchrun.VARIABLES, "0") | {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"})
    (line,) = torchrun.find_mismatch(composed("trainer.devices=1", "trainer.num_nodes=2"))
    assert line.startswith("trainer.num_nodes=2: the processes run on 1 node; set trainer.num_nodes=1")


def test_machines_with_different_numbers_of_processes_are_refused(
    environment: Callable[..., None], composed: Compose
) -> None:
    variables = dict.fromkeys(torchrun.VARIABLES, "0") | {"WORLD_SIZE": "3", "GROUP_WORLD_SIZE": "2"}
    for local in ("2", "1"):
        environment(**variables | {"LOCAL_WORLD_SIZE": local})
        (line,) = torchrun.find_mismatch(composed("trainer=ddp", "trainer.num_nodes=2"))
        assert line == (
            f"torchrun: 3 processes on 2 machines, {local} of them on this one; give each machine the same "
            "--nproc-per-node"
        )


def test_several_nodes_without_torchrun_get_instructions(
    environment: Callable[..., None], composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["scripts/train.py", "trainer.num_nodes=2"])
    (line,) = torchrun.find_mismatch(composed("trainer.num_nodes=2", "trainer.devices=1"))
    assert line.startswith("trainer.num_nodes=2: torchrun starts")
    assert line.endswith(
        "torchrun --nnodes=2 --nproc-per-node=1 --node-rank=0 --master-addr=HOST --master-port=29500 "
        "scripts/train.py trainer.num_nodes=2"
    )
    torchrun.refuse_sweep()


def test_lightnings_advice_about_srun_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "srun").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    options = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    L.Trainer(**options)  # with the warning filters of pytest
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="`srun` command is available"):
            L.Trainer(**options)
        silence_libraries()
        L.Trainer(**options)
