"""Metrics that something waits for: logged by the run, and in the right direction."""

from collections.abc import Iterator, Mapping
from typing import Any

from project.config.validation.command_request import Asked
from project.config.validation.familiar import is_familiar
from project.config.validation.rules import MONITORS
from project.runtime.text import did_you_mean

MAY_LOG = ("callbacks.", "model.", "loss.")
"""Groups whose classes, if they are none of ours, may log metrics of their own."""


def find_problems(right: Mapping[str, Any], command: Asked) -> Iterator[str]:
    """Yield where a metric is watched that is not logged; arguments as of `data.find_problems`."""
    added = [
        key
        for key, target in right.items()
        if key.endswith("._target_") and key.startswith(MAY_LOG) and not is_familiar(target)
    ]
    if "monitor" not in right or added:
        return
    watched = {
        key: str(value)
        for key, value in right.items()
        if key.rpartition(".")[2] == "monitor" and _watches(key, str(value), right)
    }
    for key, metric in watched.items():
        if metric not in MONITORS:
            if key != "monitor" and metric == watched.get("monitor"):
                continue  # it follows the other, which has been told
            yield f"{key}={metric}: {_remedy(metric)}"
            continue
        yield from _wrong_mode(key, metric, right)
    yield from _never_validated(watched, right)


def _watches(key: str, metric: str, right: Mapping[str, Any]) -> bool:
    return metric != "None" and (
        key in ("monitor", "scheduler.monitor") or f"{key.removesuffix('monitor')}_target_" in right
    )


def _remedy(metric: str) -> str:
    if metric.startswith("test/"):
        return f"the test split is used once, at the end; choose from {', '.join(MONITORS)}"
    return did_you_mean(metric, MONITORS)


def _wrong_mode(key: str, metric: str, right: Mapping[str, Any]) -> Iterator[str]:
    better = "min" if metric.endswith("/loss") else "max"
    where = f"{key.removesuffix('monitor')}mode"
    mode = right.get(where)
    if mode not in ("min", "max") or mode == better:
        return
    if key != "monitor" and (metric, mode) == (right.get("monitor"), right.get("mode")):
        return  # it follows the other, which has been told
    yield f"{where}={mode}: {key}={metric} is better when {better}imal; set {where}={better}"


def _never_validated(watched: Mapping[str, str], right: Mapping[str, Any]) -> Iterator[str]:
    """Where there is no validation within the training."""
    schedule = watched.get("scheduler.monitor", "")
    why = ""
    if right.get("data.val_size") == 0 and right.get("data.folds") is None and not _own_validation(right):
        why = "data.val_size=0"
    elif right.get("trainer.limit_val_batches") == 0:
        why = "trainer.limit_val_batches=0"
    if why:
        if schedule.startswith("val/"):
            yield (
                f"scheduler.monitor={schedule}: there are no validation images ({why}); watch training with "
                "monitor=train/loss mode=min, or choose another scheduler"
            )
        return
    every, epochs = right.get("trainer.check_val_every_n_epoch"), right.get("trainer.max_epochs")
    waiting = [key for key, metric in watched.items() if metric.startswith("val/")]
    if isinstance(every, int) and isinstance(epochs, int) and 0 < epochs < every and waiting:
        yield (
            f"trainer.check_val_every_n_epoch={every}: no validation within trainer.max_epochs={epochs}, but "
            f"{waiting[0]}={watched[waiting[0]]} waits for one; choose at most {epochs}, or "
            "trainer.limit_val_batches=0 for none"
        )


def _own_validation(right: Mapping[str, Any]) -> bool:
    from project.config.validation.training_length import data_set

    found = data_set(right)
    return found is None or found.validates
