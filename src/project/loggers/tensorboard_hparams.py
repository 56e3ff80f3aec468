"""Row of a run on TensorBoard's HParams page: results and hyperparameters. Tested with TensorBoard 2.21.

The page shows five columns within 1280 pixels: of the hyperparameters, those that differ between runs first,
then by name. Metrics follow after all of them, and every metric of the page is also a chart on TensorBoard's
first page, where results of one value are a dot a run. So results are written as hyperparameters, and the
names of the first columns begin with spaces, which browsers do not show.

TensorBoard reads a row once. So it is written when a run ends, to an event file of its own that a resumed run
replaces.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import hparams

from project.runs.metric_names import parse
from project.runs.ranking import REPETITIONS

SUFFIX = ".results"
"""End of the name of the event file with the results of a run."""
LEADING_KEYS = ("optim.lr", "model", "data", "optim", "augment", *REPETITIONS)
"""Hyperparameters to the left of the others, if they differ between runs."""


def is_result(name: str) -> bool:
    """Return True for a metric with one value per run: of the test split, or of the best weights."""
    split, kind = parse(name)
    return split == "test" or kind.startswith("best_")


def is_best_of(name: str, monitor: str) -> bool:
    """Return True for the monitored metric, measured with the best weights: `val/best_acc` of `val/acc`."""
    (split, kind), (monitored_split, monitored) = parse(name), parse(monitor)
    return split == monitored_split and kind.removeprefix("best_") == monitored


def sort_results(results: Mapping[str, float], monitor: str) -> dict[str, float]:
    """Return results by name: the monitored metric of the best weights, that of the test, then the others.

    Args:
        results: values by name, such as `val/best_acc`, `test/acc`, and `test/loss`.
        monitor: monitored metric, such as `val/acc`.
    """
    kind = parse(monitor).kind

    def place(name: str) -> tuple[bool, bool, str]:
        split, own = parse(name)
        return own.removeprefix("best_") != kind, split == "test", name

    return {name: results[name] for name in sorted(results, key=place)}


def row_columns(
    hyperparameters: Mapping[str, Any], results: Mapping[str, float], monitor: str
) -> dict[str, bool | int | float | str]:
    """Return the columns of a row by name; spaces before a name determine its place.

    Args:
        hyperparameters: values by dotted name.
        results: values by name; TensorBoard cannot read NaN and infinity, which get no column.
        monitor: monitored metric.
    """
    kind = parse(monitor).kind
    first = [
        name for name in sort_results(results, monitor) if kind == parse(name).kind.removeprefix("best_")
    ]
    names = [*first, *LEADING_KEYS]
    spaces = {name: " " * (len(names) - place) for place, name in enumerate(names)}
    values: dict[str, Any] = {name: value for name, value in results.items() if math.isfinite(value)}
    for name, value in hyperparameters.items():
        values[name] = value if isinstance(value, bool | int | float) else str(value)
    return {spaces.get(name, "") + name: value for name, value in values.items()}


def row_summaries(columns: Mapping[str, bool | int | float | str], name: str) -> tuple[Summary, Summary]:
    """Return the summaries of a row, with the name of the run, whose default is the path of its folder.

    Unlike `add_hparams`, they contain no list of columns, which TensorBoard would apply to all runs.
    """
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    _, start, end = hparams(dict(columns), {})
    for value in start.value:
        content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
        content.session_start_info.group_name = name
        value.metadata.plugin_data.content = content.SerializeToString()
    return start, end


def results_table(results: Mapping[str, float], monitor: str) -> str:
    """Return results as a Markdown table, the monitored metric first."""
    rows = [f"| {name} | {value:.4f} |" for name, value in sort_results(results, monitor).items()]
    return "\n".join(["| metric | value |", "| :-- | --: |", *rows])


def remove_results(folder: Path) -> None:
    """Remove the event file with the results of an earlier end of a run."""
    for file in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
        file.unlink(missing_ok=True)
