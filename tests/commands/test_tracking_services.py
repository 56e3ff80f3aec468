"""Tests of runs that log to MLflow and W&B: contents of the local store and of the offline files."""

import csv
import json
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

BLOCK, FULL, LAST = 32_768, 1, 4
"""Bytes of a block, and kinds of parts, of LevelDB's log format."""
TRAIN = ("model=mlp", "data.batch_size=64", "trainer.max_epochs=1")
needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="package mlflow is not installed")
needs_wandb = pytest.mark.skipif(find_spec("wandb") is None, reason="package wandb is not installed")


def run(*arguments: str, cwd: Path) -> str:
    """Run `scripts/train.py` in a new process, without this one's warning filters; return its output."""
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments]
    ended = subprocess.run(
        command, cwd=cwd, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert ended.returncode == 0, ended.stdout
    assert "warning: logger" not in ended.stdout
    return ended.stdout


def table(folder: Path, metric: str) -> list[tuple[int, float]]:
    """Return steps and values of a metric in a run's CSV file."""
    with (folder / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return [(int(row["step"]), float(row[metric])) for row in rows if row.get(metric)]


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


@needs_mlflow
@pytest.mark.filterwarnings("ignore")  # of its own use of SQLAlchemy
def test_mlflow_has_the_metrics_images_and_weights_of_a_resumed_run(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    arguments = (*TRAIN, "logger=mlflow", "paths.outputs=out", "hydra.run.dir=out/run")
    run(*arguments, cwd=tmp_path)
    folder = tmp_path / "out" / "run"
    (run_id,) = json.loads((folder / "tracking.json").read_text()).values()
    run("resume=out/run", "trainer.max_epochs=2", cwd=tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/out/mlflow.db")
    (experiment,) = (one for one in client.search_experiments() if one.name == "image-classification")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == run_id
    assert found.info.status == "FINISHED"
    assert found.data.params["optim.lr"] == "0.001"
    assert found.data.params["trainer.max_epochs"] == "1"
    assert found.data.tags["resumed.trainer.max_epochs"] == "2"
    for metric in ("train/loss", "val/acc"):
        history = client.get_metric_history(run_id, metric)
        logged = dict.fromkeys((one.step, round(one.value, 6)) for one in history)
        assert set(logged) >= {(step, round(value, 6)) for step, value in table(folder, metric)}
    path = client.download_artifacts(run_id, "checkpoints/best.ckpt", str(tmp_path))
    assert Path(path).read_bytes() == (folder / "checkpoints" / "best.ckpt").read_bytes()
    names = {one.path for one in client.list_artifacts(run_id)}
    assert {"checkpoints", "images", "network.txt", "run_config.yaml", "test"} <= names


@needs_mlflow
@pytest.mark.filterwarnings("ignore")  # of its own use of SQLAlchemy
def test_jobs_of_a_sweep_are_nested_in_mlflow(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    run("-m", *TRAIN, "logger=mlflow", "paths.outputs=out", "optim.lr=0.001,0.01", cwd=tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/out/mlflow.db")
    (experiment,) = (one for one in client.search_experiments() if one.name == "image-classification")
    runs = client.search_runs([experiment.experiment_id])
    parents = {one.data.tags.get("mlflow.parentRunId") for one in runs}
    (parent,) = (one.info.run_id for one in runs if "mlflow.parentRunId" not in one.data.tags)
    assert parents == {None, parent}
    assert len(runs) == 3


@needs_wandb
def test_offline_files_of_wandb_have_the_metrics_of_the_table(tmp_path: Path) -> None:
    arguments = ("logger=[csv,wandb]", "logger.wandb.offline=true", "hydra.run.dir=run")
    run(*TRAIN, *arguments, cwd=tmp_path)
    folder = tmp_path / "run"
    file = only(folder / "wandb", "offline-run-*/run-*.wandb")
    records = read_records(file)
    history = [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    for metric in ("train/loss", "val/acc", "test/acc"):
        logged = [(row["trainer/global_step"], row[metric]) for row in history if metric in row]
        assert [step for step, _ in logged] == [step for step, _ in table(folder, metric)]
        assert [value for _, value in logged] == pytest.approx([value for _, value in table(folder, metric)])
    logged_keys = {key.partition(".")[0] for row in history for key in row}
    assert {"train/images", "test/confusion", "test/embeddings"} <= logged_keys
    assert any(record.WhichOneof("record_type") == "artifact" for record in records)
    assert (file.parent / "files" / "run_config.yaml").read_text() == (folder / "config.yaml").read_text()


def read_records(file: Path) -> list[Any]:
    """Return the records of an offline run, a file in LevelDB's log format after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts, records = file.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:  # no room for the header of a part
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records
