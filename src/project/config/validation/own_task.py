"""Check a LightningModule and a LightningDataModule without this project's base classes, by their sources."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from project.config.logged_metrics import LoggedMetrics, logged_metrics, methods_of
from project.config.source_index import constant_of
from project.config.validation.command_request import CommandRequest
from project.runs.metric_names import is_smaller_better
from project.runtime.text import did_you_mean

DEFAULT_MONITOR = "val/acc"
DEFAULT_DATA = "project.datamodules.digits.Digits"
TASK_LOADERS = "project.datamodules.task_loaders.TaskLoaders"
SUFFIXES = ("", "_step", "_epoch")
"""Endings that Lightning adds to a metric that is logged both for each step and for each epoch."""
DATALOADER = re.compile(r"/dataloader_idx_\d+$")
"""Ending that Lightning adds with several validation loaders."""
NOT_TRAINING = ("test_", "on_test_", "predict_", "on_predict_")
"""Starts of the names of methods that training does not call."""
VALIDATING = ("validation_", "on_validation_")
"""Starts of the names of methods that validation calls."""


def find_problems(right: Mapping[str, Any], command: CommandRequest) -> Iterator[str]:
    """Yield a line for each missing method and each metric that is not logged; see `data.find_problems`."""
    task, data = str(right.get("task._target_")), str(right.get("data._target_"))
    of_task, of_data = methods_of(task), methods_of(data)
    if of_task is not None and "training_step" not in of_task:
        yield f"task._target_={task}: {_name(task)} has no training_step; define one"
    if "train_dataloader" in (of_task or ()) and data == DEFAULT_DATA and "data" not in command.keys:
        yield (
            f"data=digits: would replace train_dataloader of {_name(task)}; set data=task_loaders, or name "
            "the data set (data=digits)"
        )
    if data == TASK_LOADERS and of_task is not None and "train_dataloader" not in of_task:
        yield f"data=task_loaders: {_name(task)} has no train_dataloader; define one, or name a data set"
    if of_data is not None and "train_dataloader" not in of_data:
        yield f"data._target_={data}: {_name(data)} has no train_dataloader; define one"
    if isinstance(constant_of(task, "METRICS"), dict) or "monitor" not in right:
        return  # checked by the declared metrics
    logged = logged_metrics(task)
    if not logged.complete or any(_is_foreign_callback(key, value) for key, value in right.items()):
        return
    yield from _wrong_monitors(right, logged, of_task, of_data)


def _wrong_monitors(
    right: Mapping[str, Any],
    logged: LoggedMetrics,
    of_task: frozenset[str] | None,
    of_data: frozenset[str] | None,
) -> Iterator[str]:
    task = _name(str(right["task._target_"]))
    names = sorted(_trained(logged), key=lambda name: (not name.startswith("val"), name))
    known = {f"{name}{suffix}": name for name in names for suffix in SUFFIXES}
    for key, metric in _monitored(right).items():
        plain = DATALOADER.sub("", metric)
        if key != "monitor" and metric == str(right["monitor"]):
            continue  # reported once
        if plain not in known:
            yield _not_logged(key, metric, task, names)
        elif all(one.startswith(VALIDATING) for one in logged.methods[known[plain]]):
            if of_data is not None and "val_dataloader" not in of_data:
                data = _name(str(right["data._target_"]))
                yield f"{key}={metric}: {data} has no val_dataloader; define one, or monitor another metric"
            elif of_task is not None and "validation_step" not in of_task:
                yield f"{key}={metric}: {task} has no validation_step; define one, or monitor another metric"
            elif right.get("trainer.limit_val_batches") == 0:
                yield f"{key}={metric}: trainer.limit_val_batches=0 skips validation; monitor another metric"


def _not_logged(key: str, metric: str, task: str, names: list[str]) -> str:
    if not names:
        return f"{key}={metric}: {task} logs no metric in training; log one with self.log"
    problem = f"{key}={metric}: {task} logs {', '.join(names)}"
    if metric == DEFAULT_MONITOR:
        mode = "min" if is_smaller_better(names[0]) else "max"
        return f"{problem}; set {key}={names[0]} {key.removesuffix('monitor')}mode={mode}"
    return f"{problem}; {did_you_mean(metric, names)}"


def _monitored(right: Mapping[str, Any]) -> dict[str, str]:
    """Return the monitored metrics of the run and its callbacks, by key."""
    return {
        key: str(value)
        for key, value in right.items()
        if isinstance(value, str)
        and (key == "monitor" or (key.startswith("callbacks.") and key.endswith(".monitor")))
    }


def _trained(logged: LoggedMetrics) -> list[str]:
    """Return the metrics that are logged in training or validation."""
    return [
        name
        for name, methods in logged.methods.items()
        if not all(method.startswith(NOT_TRAINING) for method in methods)
    ]


def _is_foreign_callback(key: str, value: Any) -> bool:
    """Return True for the target of a callback that may log other metrics."""
    is_target = key.startswith("callbacks.") and key.endswith("._target_")
    return is_target and not str(value).startswith("project.callbacks.") and not _of_lightning(str(value))


def _of_lightning(target: str) -> bool:
    monitors = ("LearningRateMonitor", "DeviceStatsMonitor")  # log other names, which nobody monitors
    return target.startswith("lightning.") and not target.endswith(monitors)


def _name(target: str) -> str:
    return target.rpartition(".")[2]
