"""Parts of searches that pause trials after some epochs, and continue them from their checkpoints.

A trial is one job. To pause, its process ends; to continue, the job starts again in the same folder. All
state is in the ledger.
"""

import math
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from project.config.validation.data import reason_without_validation
from project.config.validation.declared_keys import flat
from project.errors import InputError
from project.runs.metric_names import is_of_split
from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import Job, shorten_number, to_override_value
from project.sweeps.compose import resolved_values

PAUSE = "project.callbacks.trial_pause.TrialPause"


def refuse_repetitions(sweeper: str, seeds: int, folds: int | None) -> None:
    """Raise an InputError for several seeds or folds, which the searches do not support."""
    for key, value, default in (("seeds", seeds, 1), ("folds", folds, None)):
        if value != default:
            raise InputError(
                f"{key}={value}: hydra/sweeper={sweeper} trains each trial once; leave it out, and train the "
                f"best configuration again with {key}={value}"
            )


def refuse_unmeasured(config: DictConfig, sweeper: str, pauses: Iterable[int]) -> None:
    """Refuse a configuration whose trials would have no checkpoint or no value when they pause.

    Args:
        config: composed configuration of a trial.
        sweeper: name of the sweeper in the message.
        pauses: epochs after which trials pause.

    Raises:
        InputError: the last checkpoint is off, or the monitored metric is not measured.
    """
    why = f"hydra/sweeper={sweeper} compares trials by monitor={config.monitor}"
    if OmegaConf.select(config, "callbacks.last") is None:
        raise InputError(
            f"callbacks.last: missing, but hydra/sweeper={sweeper} continues trials from their last "
            "checkpoints; do not leave it out"
        )
    if not is_of_split(str(config.monitor), "val"):
        return
    right = dict(flat("", resolved_values(config)))
    if reason := reason_without_validation(right):
        raise InputError(
            f"{reason}: there is no validation, but {why}; raise it, or set monitor=train/loss mode=min"
        )
    every = right.get("trainer.check_val_every_n_epoch") or 1
    if wrong := [epochs for epochs in pauses if epochs % every]:
        raise InputError(
            f"trainer.check_val_every_n_epoch={every}: no validation after epoch {wrong[0]}, where {why}; "
            "leave it out"
        )


def with_pause(job: Job, epochs: int) -> list[str]:
    """Return the overrides of a job that pauses after a number of epochs."""
    fields = {"_target_": PAUSE, "epochs": epochs}
    return [*job.overrides, f"+callbacks.pause={to_override_value(fields)}"]


def clear_result(folder: SweepFolder, job: Job) -> bool:
    """Clear the result in the status of a job before the job continues; return true on success.

    If the sweep is killed then, the status must not pass for the result of the next pause.
    """
    return folder.run(job.name).write_status(state="starting", value=None, error=None)


def score(value: float | None, mode: str) -> float:
    """Return a value of which larger is better, -inf for a diverged or missing one."""
    if value is None or not math.isfinite(value):
        return -math.inf
    return value if mode == "max" else -value


def values_of(job: Job) -> list[float | None]:
    """Return the value of a trial at each pause, and at its end."""
    return [*job.pause_values, job.value] if job.state == "done" else job.pause_values


def cell_text(cell: Any) -> str:
    """Format a cell of a table of trials."""
    if isinstance(cell, float):
        return f"{cell:.4f}"
    return "" if cell is None else shorten_number(str(cell))
