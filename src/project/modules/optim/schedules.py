"""Learning-rate schedules.

Each function takes the optimizer and the training length, and returns the `lr_scheduler` entry of Lightning's
`configure_optimizers`: the torch scheduler, its interval and the metric to monitor. To add a schedule, write
one such function and one YAML file.

A resumed run builds its schedule from the current length and options, and fast-forwards it to the current
step. Only a plateau schedule restores its state, which depends on measured metrics.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from torch.optim import Optimizer
from torch.optim import lr_scheduler as torch_schedules

from project.errors import InputError
from project.modules.optim.training_length import TrainingLength
from project.runtime.bounds import Range

Schedule = dict[str, Any]
Interval = Literal["epoch", "step"]

PLATEAU_STATE_KEYS = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
"""Keys of a plateau schedule's state that are not constructor arguments."""


def fast_forward(schedule: Schedule, length: TrainingLength) -> None:
    """Advance a new schedule to the current step of the training.

    Learning rates equal bit for bit those of a run with this configuration from its start.
    """
    scheduler, interval = schedule["scheduler"], schedule.get("interval", "epoch")
    frequency = schedule.get("frequency", 1)
    done = length.done_in_units_of(interval) if length.is_used else length.taken[interval]
    if interval == "step" and frequency > 1:  # Lightning restarts this count in each epoch
        epochs, steps = divmod(done, length.steps_per_epoch)
        done = epochs * (length.steps_per_epoch // frequency) + steps // frequency
    else:
        done //= frequency
    scheduler.optimizer._opt_called = True  # torch would warn, but the optimizer stepped before resuming
    if isinstance(
        scheduler, torch_schedules.LambdaLR | torch_schedules.OneCycleLR
    ):  # closed forms: jump there
        scheduler.last_epoch, scheduler._step_count, done = done - 1, done, 1
    for _ in range(done):
        scheduler.step()


def constant(optimizer: Optimizer, length: TrainingLength) -> Schedule:
    """Keep the learning rate constant (torch's `LambdaLR`)."""
    return {"scheduler": torch_schedules.LambdaLR(optimizer, _unchanged), "interval": "epoch"}


def _unchanged(step: int) -> float:
    return 1.0


def step(
    optimizer: Optimizer,
    length: TrainingLength,
    *,
    step_size: Annotated[int, Range(1)],
    gamma: Annotated[float, Range(above=0)],
    interval: Interval = "epoch",
) -> Schedule:
    """Multiply the learning rate by `gamma` every `step_size` steps or epochs (torch's `StepLR`)."""
    scheduler = torch_schedules.StepLR(optimizer, step_size=step_size, gamma=gamma)
    return {"scheduler": scheduler, "interval": interval}


def multistep(
    optimizer: Optimizer,
    length: TrainingLength,
    *,
    milestones: Sequence[Annotated[float, Range(above=0, below=1)] | Annotated[int, Range(1)]],
    gamma: Annotated[float, Range(above=0)],
    interval: Interval = "epoch",
) -> Schedule:
    """Multiply the learning rate by `gamma` at each milestone (He et al. 2016, arXiv 1512.03385, sec. 4.2).

    Args:
        optimizer: optimizer with the initial learning rate.
        length: training length.
        milestones: fractions of the training if below 1, else numbers of steps or epochs.
        gamma: factor.
        interval: `step` or `epoch`.
    """
    if any(milestone < 1 for milestone in milestones):
        total = length.in_units_of(interval)
        offset = length.taken[interval] - length.done_in_units_of(interval)
        milestones = [round(each * total) if each < 1 else max(0, each - offset) for each in milestones]
    scheduler = torch_schedules.MultiStepLR(
        optimizer, milestones=[int(each) for each in milestones], gamma=gamma
    )
    return {"scheduler": scheduler, "interval": interval}


def exponential(
    optimizer: Optimizer,
    length: TrainingLength,
    *,
    gamma: Annotated[float, Range(above=0)],
    interval: Interval = "epoch",
) -> Schedule:
    """Multiply the learning rate by `gamma` every step or epoch (torch's `ExponentialLR`)."""
    return {"scheduler": torch_schedules.ExponentialLR(optimizer, gamma=gamma), "interval": interval}


def cosine(
    optimizer: Optimizer,
    length: TrainingLength,
    *,
    final_lr: Annotated[float, Range(0, 1000)] = 0.0,
    interval: Interval = "step",
) -> Schedule:
    """Cosine annealing of the learning rate (Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5).

    Groups with an `lr_scale` (see `parameter_groups`) end at `final_lr` times `lr_scale`.
    """
    total = length.in_units_of(interval)

    def ratio_of(peak: float) -> Callable[[int], float]:
        lowest = final_lr / peak if peak else 1.0  # a learning rate of 0 stays 0
        return lambda step: lowest + (1 - lowest) * _half_cosine(step / total)

    ratios = [ratio_of(group["lr"] / group.get("lr_scale", 1.0)) for group in optimizer.param_groups]
    return {"scheduler": torch_schedules.LambdaLR(optimizer, ratios), "interval": interval}


def linear(
    optimizer: Optimizer,
    length: TrainingLength,
    *,
    final_ratio: Annotated[float, Range(0, 1)] = 0.0,
    role_ends: Annotated[Mapping[str, float], Range(above=0, high=1)] | None = None,
) -> Schedule:
    """Lower the learning rate linearly (as in airbench94: Jordan 2024, arXiv 2404.00498).

    Args:
        optimizer: optimizer with the initial learning rate.
        length: training length.
        final_ratio: final learning rate relative to the initial one [0].
        role_ends: maps a parameter role (see `parameter_groups`) to the fraction of the training, above 0 to
            1, after which its learning rate is final [1 for all roles].

    Raises:
        InputError: no parameters have such a role, or a fraction is out of range.
    """
    total = length.in_units_of("step")
    role_ends = role_ends or {}
    roles = {group["role"]: None for group in optimizer.param_groups if "role" in group}
    for role, end in role_ends.items():
        if role not in roles:
            known = ", ".join(roles) or "none, because this model has no parameter roles"
            remedy = f"leave it out with '~scheduler.role_ends.{role}'"
            raise InputError(f"scheduler.role_ends.{role}: choose from {known}; or {remedy}")
        if not 0 < end <= 1:
            raise InputError(f"scheduler.role_ends.{role}={end}: must be above 0 and at most 1")

    def ratio_until(end: float) -> Callable[[int], float]:
        return lambda step: 1 - (1 - final_ratio) * min(1.0, step / (end * total))

    ratios = [ratio_until(role_ends.get(group.get("role", ""), 1.0)) for group in optimizer.param_groups]
    return {"scheduler": torch_schedules.LambdaLR(optimizer, ratios), "interval": "step"}


def onecycle(
    optimizer: Optimizer,
    length: TrainingLength,
    *,
    warmup: Annotated[float, Range(0, 1)] = 0.3,
    div_factor: Annotated[float, Range(1)] = 25.0,
    final_div_factor: Annotated[float, Range(1)] = 1e4,
    anneal: Literal["cos", "linear"] = "cos",
) -> Schedule:
    """Raise the learning rate to its peak, then lower it (Smith and Topin 2018, arXiv 1708.07120).

    Args:
        optimizer: optimizer with the peak learning rate.
        length: training length.
        warmup: fraction of the training in which the learning rate rises.
        div_factor: peak divided by the initial learning rate.
        final_div_factor: initial learning rate divided by the final one.
        anneal: `cos` or `linear`.
    """
    scheduler = torch_schedules.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=length.in_units_of("step") + 1,  # torch counts the start as a step
        pct_start=warmup,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        anneal_strategy=anneal,
        cycle_momentum=False,  # not every optimizer has a momentum
    )
    return {"scheduler": scheduler, "interval": "step"}


def plateau(
    optimizer: Optimizer,
    length: TrainingLength,
    *,
    monitor: str,
    mode: Literal["max", "min"],
    factor: Annotated[float, Range(above=0, below=1)],
    patience: Annotated[int, Range(0)],
    frequency: Annotated[int, Range(1)] = 1,
) -> Schedule:
    """Multiply the learning rate by `factor` when a metric stagnates (torch's `ReduceLROnPlateau`).

    Args:
        optimizer: optimizer with the initial learning rate.
        length: not used.
        monitor: name of the metric.
        mode: `max` if larger is better, else `min`.
        factor: factor of the learning rate, below 1.
        patience: checks without improvement before the learning rate is lowered.
        frequency: epochs between checks [1].
    """
    scheduler = torch_schedules.ReduceLROnPlateau(optimizer, mode=mode, factor=factor, patience=patience)
    return {"scheduler": scheduler, "interval": "epoch", "frequency": frequency, "monitor": monitor}


def warmup_cosine(
    optimizer: Optimizer,
    length: TrainingLength,
    *,
    warmup: Annotated[float, Range(0, 1)] = 0.05,
    final_ratio: Annotated[float, Range(0, 1)] = 0.0,
) -> Schedule:
    """Linear warm-up, then cosine annealing of the learning rate.

    Warm-up: Goyal et al. 2017, arXiv 1706.02677, sec. 2.2. Annealing: Loshchilov and Hutter 2017, arXiv
    1608.03983, eq. 5.

    Args:
        optimizer: optimizer with the peak learning rate.
        length: training length.
        warmup: fraction of the training in which the learning rate rises.
        final_ratio: final learning rate relative to the peak [0].
    """
    total = length.in_units_of("step")
    rising = max(1, round(warmup * total))

    def ratio(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        done = (step - rising) / max(1, total - rising)
        return final_ratio + (1 - final_ratio) * _half_cosine(done)

    return {"scheduler": torch_schedules.LambdaLR(optimizer, ratio), "interval": "step"}


def _half_cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
