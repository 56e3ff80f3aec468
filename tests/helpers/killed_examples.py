"""Trainings of other packages' modules that are killed once, and the comparison of their results."""

import json
from pathlib import Path

import forked_attempts
from conftest import read_table
from killing_callback import MARK

__all__ = ["MARK"]

KILLED = ["+callbacks.kill._target_=killing_callback.KillOnce"]
OWN_TASKS = {  # module: (overrides of its data, monitored metric)
    "lightning_examples.LitAutoEncoder": ("data._target_=lightning_examples.RandomDigits", "val_loss"),
    "lightning_examples.LitGAN": ("data._target_=lightning_examples.RandomDigits", "g_loss"),
    "lightning_examples.Forecaster": ("data._target_=lightning_examples.SeriesData", "val_loss"),
    "table_examples.Tagger": ("data._target_=table_examples.LabeledTable", "val_auroc"),
    "table_examples.PriceRegressor": (
        "data=tabular data.table=prices.csv data.label_columns=price data.target_type=real data.batch_size=8",
        "val_r2",
    ),
}
"""An autoencoder, a GAN with two optimizers, dict batches, several labels from a CSV file, and a regression
on this project's data module."""


def words_for(task: str) -> list[str]:
    """Return the overrides of a run that is killed in its second epoch unless the file MARK exists."""
    data, monitor = OWN_TASKS[task]
    names = ["task=custom", f"task._target_={task}", *data.split(), f"monitor={monitor}"]
    lengths = ["trainer.log_every_n_steps=1", "trainer.max_epochs=3", "callbacks.last.every_steps=1"]
    return [*names, *lengths, *KILLED]


def runs_below(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.glob("outputs/**/status.json"))


def state_of(run: Path) -> str:
    return json.loads((run / "status.json").read_text())["state"]


def assert_equal_runs(one: Path, other: Path) -> None:
    """Compare two finished runs: all tensors of the last checkpoint, and the number of logged rows."""
    runs = (one, other)
    assert [state_of(run) for run in runs] == ["done", "done"]
    states = [forked_attempts.state_of(run / "checkpoints" / "last.ckpt") for run in runs]
    assert forked_attempts.difference(*states) == ""
    assert len({len(read_table(run / "metrics.csv")) for run in runs}) == 1
