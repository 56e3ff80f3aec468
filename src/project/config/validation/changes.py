"""Check if values may change during training: load the state of one configuration into another."""

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from project.config.instantiate import build, build_task, resolve
from project.config.parts import parts_of
from project.modules.optim.parameter_groups import parameter_groups

WITHOUT_STATE = ("optim", "scheduler")
"""Parts of a task that are no modules, so that their values do not change its weights."""


def explain_lost_change(before: DictConfig, now: DictConfig) -> str:
    """Return the reason why a training cannot change from one configuration to another.

    Parts that cannot be built here are left to the job itself.

    Args:
        before: composed configuration of a run.
        now: configuration of the same run with other values.

    Returns:
        An empty string if the state of either fits the other, and the change has an effect.
    """
    own = [
        OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        for config in (before, now)
    ]
    return _explain(resolve(own[0]), resolve(own[1]))


def _explain(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    parts = {"task", *parts_of(before["task"]).values()} - {*WITHOUT_STATE}
    if any(before.get(part) != now.get(part) for part in parts):
        one, other = _state(before), _state(now)
        for name in one.keys() | other.keys() if one and other else ():
            if name not in one or name not in other or one[name].shape != other[name].shape:
                return f"the saved weights belong to another network: {name} differs"
        for name in one.keys() & other.keys():
            if not torch.equal(one[name], other[name]):
                return f"{name} is part of a checkpoint, whose value would replace the new one"
    if before.get("optim") != now.get("optim"):
        return _optimizer_problem(before, now) or _optimizer_problem(now, before)
    return ""


def _state(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the initial state of a task from a fixed seed; empty if the task cannot be built."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return dict(build_task(dict(values)).state_dict())
        except Exception:  # the job itself reports it
            return {}


def _optimizer_problem(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the error of an optimizer that continues from the state of another one; empty without one."""
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))

    def compute_gradient() -> Tensor:
        network.zero_grad()
        loss: Tensor = network(torch.ones(2, 2)).square().mean()
        loss.backward()
        return loss

    with torch.random.fork_rng(devices=[]):
        try:
            first, second = (build(dict(each), "optim")(parameter_groups(network)) for each in (before, now))
            options = [
                {name: value for name, value in group.items() if name != "params"}
                for group in second.param_groups
            ]
            first.step(compute_gradient)
        except Exception:  # needs another network; the job itself reports it
            return ""
        second.load_state_dict(first.state_dict())
        for group, own in zip(second.param_groups, options, strict=True):
            group.update(own)
        try:
            second.step(compute_gradient)
        except (KeyError, RuntimeError, AttributeError, TypeError, ValueError) as error:
            return f"its optimizer cannot continue from the saved state ({type(error).__name__}: {error})"
    return ""
