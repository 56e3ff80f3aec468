"""Tests of the metrics table in resumed runs, and of a run's row in TensorBoard."""

import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import Compose, read_table
from google.protobuf.json_format import MessageToDict
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from project.loggers.csv import MetricsCSV
from project.loggers.tensorboard import TensorBoard, chart_layout
from project.runs.hparam_diff import hyperparameters
from project.runtime.csv_files import read_metrics


def test_continued_table_keeps_rows_and_replaces_repeated_steps(tmp_path: Path) -> None:
    first = MetricsCSV(str(tmp_path / "metrics.csv"))
    for step in (1, 2, 3, 4):
        first.log_metrics({"train/loss": step}, step=step)
    first.finalize("success")
    second = MetricsCSV(str(tmp_path / "metrics.csv"))
    for step in (3, 4, 5):
        second.log_metrics({"train/loss": 10 * step}, step=step)
        second.log_metrics({"b": step}, step=step)
    second.finalize("success")
    rows = read_table(tmp_path / "metrics.csv")
    assert [(row["step"], row["train/loss"], row["b"]) for row in rows] == [
        ("1", "1", ""),
        ("2", "2", ""),
        ("3", "30", "3"),
        ("4", "40", "4"),
        ("5", "50", "5"),
    ]


def test_table_of_a_finished_run_keeps_its_last_row(tmp_path: Path) -> None:
    first = MetricsCSV(str(tmp_path / "metrics.csv"))
    first.log_metrics({"train/loss": 1}, step=7)
    first.finalize("success")
    second = MetricsCSV(str(tmp_path / "metrics.csv"))
    second.log_metrics({"test/acc": 0.5}, step=7)
    second.finalize("success")
    assert [row["train/loss"] for row in read_table(tmp_path / "metrics.csv")] == ["1", ""]


def test_fold_is_a_compared_hyperparameter(composed: Compose) -> None:
    def shown(*overrides: str) -> dict[str, object]:
        config = OmegaConf.to_container(composed(*overrides), resolve=True)
        return {name: value for name, value in hyperparameters(config).items() if name.startswith("data.")}

    assert shown() == {"data.batch_size": 16, "data.val_size": 0.1}
    assert shown("data.folds=5", "data.fold=2") == {"data.batch_size": 16, "data.folds": 5, "data.fold": 2}


def test_unfinished_row_is_replaced_when_it_grows(tmp_path: Path) -> None:
    logger = MetricsCSV(str(tmp_path / "metrics.csv"))
    logger.log_metrics({"train/loss": 1.0}, step=1)
    logger.log_metrics({"train/loss": 0.5}, step=2)
    logger.state_dict()
    assert [row["step"] for row in read_table(logger.file)] == ["1", "2"]
    logger.log_metrics({"train/loss": 0.25}, step=2)
    logger.log_metrics({"train/loss": 0.125}, step=3)
    logger.state_dict()
    logger.log_metrics({"val/loss": 9.0}, step=3)
    logger.finalize("success")
    assert read_table(logger.file) == [
        {"step": "1", "train/loss": "1.0", "val/loss": ""},
        {"step": "2", "train/loss": "0.25", "val/loss": ""},
        {"step": "3", "train/loss": "0.125", "val/loss": "9.0"},
    ]
    logger.file.unlink()
    logger.log_metrics({"val/loss": 8.0}, step=4)
    logger.save()
    assert [row["step"] for row in read_table(logger.file)] == ["3", "4"]  # rows that were still in memory


@pytest.mark.parametrize(
    "garbage",
    [
        b"3,0.2",  # partial line that parses as numbers
        b"3,\r\n",
        b"\0" * 200_000,  # exceeds the size limit of a CSV cell
        b"\0\0\0\r\n",
        b"\xff\xfe\x80,\xf1\r\n",
        b'Traceback (most recent call last):\n  File "x", line 1\n',
        b'"never closed,1\n2,3\n',
        b"7,eight,9\r\n7,8,9,10\r\n,8,9\r\n",
    ],
)
@pytest.mark.parametrize("resumed", [False, True])
def test_garbage_after_a_table_loses_no_row(tmp_path: Path, garbage: bytes, resumed: bool) -> None:
    first = MetricsCSV(str(tmp_path / "metrics.csv"))
    for step in (1, 2):
        first.log_metrics({"train/loss": 0.5 * step, "epoch": 0}, step=step)
    state = first.state_dict()
    first.finalize("success")
    with first.file.open("ab") as stream:
        stream.write(garbage)
    assert read_metrics(first.file)[1] == [["1", "0.5", "0"], ["2", "1.0", "0"]]
    second = MetricsCSV(str(tmp_path / "metrics.csv"))
    if resumed:
        second.load_state_dict(state)
    for step in (3, 4):
        second.log_metrics({"train/loss": 0.5 * step, "epoch": 0}, step=step)
    second.finalize("success")
    rows = read_table(first.file)
    assert [(row["step"], row["train/loss"]) for row in rows] == [
        ("1", "0.5"),
        ("2", "1.0"),
        ("3", "1.5"),
        ("4", "2.0"),
    ]


def test_metrics_with_any_name_are_read_back(tmp_path: Path) -> None:
    logger = MetricsCSV(str(tmp_path / "metrics.csv"))
    logger.log_metrics({"=1+1": -1.5, "two\nlines, and more": 2.0}, step=1)
    logger.finalize("success")
    again = MetricsCSV(str(tmp_path / "metrics.csv"))
    again.log_metrics({"=1+1": float("-inf")}, step=2)
    again.finalize("success")
    columns, rows = read_metrics(again.file)
    assert columns == ["step", "=1+1", "two\nlines, and more"]
    assert rows == [["1", "-1.5", "2.0"], ["2", "-inf", ""]]


def read_row(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the name and the columns of a run's row on the HParams page, in the order of the page."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(str(folder))
    events.Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    info = HParamsPluginData.FromString(content).session_start_info
    columns = {name: MessageToDict(info.hparams[name]) for name in sorted(info.hparams)}
    return info.group_name, columns


def test_hparams_row_has_the_monitored_result_and_the_learning_rate_first(tmp_path: Path) -> None:
    board = TensorBoard(str(tmp_path))
    board.log_hyperparams({"loss.label_smoothing": 0.1, "model": "CNN", "optim.lr": 0.01, "seed": 1})
    board.log_metrics({"train/loss": 1.0, "val/mae": 4.0, "val/loss": 1.0, "epoch": 1}, step=1)
    board.log_metrics({"val/best_loss": 0.5, "val/best_mae": 3.0}, step=1)
    board.log_metrics({"test/loss": 0.5, "test/mae": 3.5, "test/r2": math.nan}, step=1)
    board.log_results({"val/mae": 3.0, "test/mae": 3.5}, "val/mae")
    board.finalize("success")
    name, columns = read_row(tmp_path)
    assert name.startswith(tmp_path.name)
    assert [key.strip() for key in columns] == [
        *("val/best_mae", "test/mae", "optim.lr", "model", "seed"),
        *("loss.label_smoothing", "test/loss", "val/best_loss"),
    ]
    assert {key.strip(): value for key, value in columns.items()} == {
        "val/best_mae": 3.0,
        "test/mae": 3.5,
        "optim.lr": 0.01,
        "model": "CNN",
        "seed": 1.0,
        "loss.label_smoothing": 0.1,
        "test/loss": 0.5,
        "val/best_loss": 0.5,
    }
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["train/loss", "val/loss", "val/mae"]
    table = events.Tensors("results/text_summary")[0].tensor_proto.string_val[0].decode()
    assert table.splitlines()[2:4] == ["| val/best_mae | 3.0000 |", "| test/mae | 3.5000 |"]


def test_row_of_a_resumed_run_replaces_the_earlier_one(tmp_path: Path) -> None:
    for value in (0.5, 0.75):
        board = TensorBoard(str(tmp_path))
        board.log_hyperparams({"model": "CNN"})
        board.log_results({"val_acc": value}, "val_acc")  # of a module without metrics of the best weights
        board.finalize("success")
    assert {key.strip(): value for key, value in read_row(tmp_path)[1].items()} == {
        "val_acc": 0.75,
        "model": "CNN",
    }


def test_custom_scalars_show_all_metrics_of_any_task() -> None:
    tags = ["train/loss", "val/dice", "val/loss", "train_loss_step", "train_loss_epoch", "vitals/lr"]
    layout = chart_layout([*tags, "made_up"])
    assert {category: list(charts) for category, charts in layout.items()} == {
        "training and validation": ["loss", "dice"],
        "vitals": ["lr"],
    }
    (pattern,) = layout["training and validation"]["loss"][1]
    found = [tag for tag in (*tags, "train/loss_of_kl") if re.search(pattern, tag)]
    assert found == ["train/loss", "val/loss", "train_loss_epoch"]
