"""States of metrics in checkpoints, so that the metrics of an epoch do not depend on where a run resumed.

They are the states of each `torchmetrics.Metric` of a LightningModule, and the values that Lightning
accumulates for `self.log(..., on_epoch=True)`. Checkpoints hold the states of all ranks. A run resumed on
another number of ranks reduces them as the metric does at the end of an epoch.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_max, dim_zero_mean, dim_zero_min

from project.modules.metrics import LossAndAccuracy
from project.runtime import lightning_private

log = logging.getLogger(__name__)

State = dict[str, Tensor | list[Tensor]]
Saved = dict[str, Any]
"""States of a rank: `metrics` and `logged`, each by name."""
REPEATABLE = (dim_zero_mean, dim_zero_max, dim_zero_min)
"""Reductions that return x for equal values x of all ranks."""


class MetricStates:
    """Saves and restores the states of a LightningModule's metrics.

    Args:
        trainer: its trainer.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = trainer
        self._loaded: list[Saved] = []
        self._before_validation: dict[str, Saved] | None = None

    def start_validation(self) -> None:
        """Note the states to which a checkpoint within the validation returns, as it is repeated."""
        self._before_validation = {name: _export(metric) for name, metric in self._metrics().items()}

    def end_validation(self) -> None:
        """Note that the validation is finished."""
        self._before_validation = None

    def save(self, *, repeats_validation: bool) -> list[Saved]:
        """Return the states of all ranks on rank 0, and those of the own rank elsewhere; collective.

        Args:
            repeats_validation: the checkpoint lies within a validation.
        """
        before = (self._before_validation or {}) if repeats_validation else {}
        # Lightning resets them after the validation.
        reset = {id(metric) for metric in lightning_private.logged_validation_metrics(self._trainer)}
        metrics = {
            name: before.get(name) or _export(metric)
            for name, metric in self._metrics().items()
            if id(metric) not in reset
        }
        logged = {
            key: {"options": value.options()} | (_export(value.metric) if value.metric is not None else {})
            for key, value in lightning_private.training_values(self._trainer).items()
        }
        own = {"metrics": {name: one for name, one in metrics.items() if one}, "logged": logged}
        return _gather(own)

    def load(self, saved: Sequence[Saved]) -> None:
        """Keep the result of `save` from a checkpoint until `restore`."""
        self._loaded = list(saved)

    def restore(self) -> None:
        """Restore the loaded states, before the first batch."""
        ranks, self._loaded = self._loaded, []
        if not ranks:
            return
        trainer = self._trainer
        metrics = self._metrics()
        for name in dict.fromkeys(name for saved in ranks for name in saved["metrics"]):
            if name in metrics:
                saved = [one["metrics"].get(name, {}) for one in ranks]
                self._restore_one(name, metrics[name], saved, lightning_private.reductions_of(metrics[name]))
        for key in dict.fromkeys(key for saved in ranks for key in saved["logged"]):
            saved = [one["logged"].get(key, {}) for one in ranks]
            options = next(one["options"] for one in saved if one)
            if len(saved) != trainer.world_size:
                options = options | {"sync_dist": True}  # rank 0 has the sums
            if options["rank_zero_only"] and not trainer.is_global_zero:
                continue
            value = lightning_private.add_training_value(trainer, key, options)
            if value.metric is not None:
                self._restore_one(options["name"], value.metric, saved, value.reductions)

    def _metrics(self) -> dict[str, Metric]:
        """Return the metrics of the module by name, except those that it saves itself."""
        return {
            name: module
            for name, module in self._trainer.lightning_module.named_modules()
            if isinstance(module, Metric) and not isinstance(module, LossAndAccuracy)
        }

    def _restore_one(
        self,
        name: str,
        metric: Metric,
        saved: Sequence[Saved],
        reductions: Mapping[str, Callable[..., Any] | None],
    ) -> None:
        rank, world_size = self._trainer.global_rank, self._trainer.world_size
        if len(saved) == world_size:
            own = saved[rank]
        else:
            found = [one for one in saved if one]
            if any(_is_unreducible(reductions.get(state), found, state) for state in found[0]["state"]):
                log.warning(
                    "%s: its states cannot be reduced from %s to %s ranks; it restarts in this epoch",
                    *(name, len(saved), world_size),
                )
                return
            own = _reduce(found, reductions, is_first=rank == 0)
        if not own:
            return
        device = self._trainer.lightning_module.device
        stored = torch.device("cpu") if metric.compute_on_cpu else device
        state = {
            name: [one.to(stored) for one in value] if isinstance(value, list) else value.to(device)
            for name, value in own["state"].items()
            if name in metric.metric_state
        }
        lightning_private.set_metric_state(metric, state, own["updates"])


def _export(metric: Metric) -> Saved:
    """Return a copy of a metric's states and its number of updates; empty before the first update."""
    if not metric.update_count:
        return {}
    state = {
        name: [one.detach().cpu() for one in value]
        if isinstance(value, list)
        else value.detach().cpu().clone()
        for name, value in metric.metric_state.items()
    }
    return {"state": state, "updates": metric.update_count}


def _is_unreducible(reduction: Any, saved: Sequence[Saved], name: str) -> bool:
    return reduction is None and any(isinstance(one["state"][name], Tensor) for one in saved)


def _reduce(
    saved: Sequence[Saved], reductions: Mapping[str, Callable[..., Any] | None], *, is_first: bool
) -> Saved:
    """Return the states of a rank, which the states of other ranks reduce to.

    The first rank gets the sums and lists; other ranks keep the initial values.
    """
    state: State = {}
    for name in saved[0]["state"]:
        values = [one["state"][name] for one in saved]
        reduction = reductions[name]
        if isinstance(values[0], list):
            if is_first:
                state[name] = [part for value in values for part in value]
        elif is_first or reduction in REPEATABLE:
            assert reduction is not None
            state[name] = reduction(torch.stack(values))
    return {"state": state, "updates": sum(one["updates"] for one in saved) if is_first else 1}


def _gather(own: Saved) -> list[Saved]:
    """Return the values of all ranks on rank 0, and the own ones elsewhere."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return [own]
    is_first = distributed.get_rank() == 0
    gathered: list[Any] | None = [None] * distributed.get_world_size() if is_first else None
    distributed.gather_object(own, gathered)
    return [own] if gathered is None else gathered
