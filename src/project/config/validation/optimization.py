"""Optimizers and schedules: options that go together, and that have an effect within the training."""

from collections.abc import Iterator, Mapping
from typing import Any

from project.config.validation.command_request import Asked
from project.config.validation.training_length import Length, length

SCHEDULES = "project.modules.optim.schedules."
NEED_LENGTH = ("cosine", "linear", "onecycle", "warmup_cosine")
AIRBENCH = "project.modules.networks.airbench.Airbench"
AIRBENCH_ROLES = ("whitening", "norms", "filters", "head")


def find_problems(right: Mapping[str, Any], command: Asked) -> Iterator[str]:
    """Yield what is wrong with optimizer and schedule; arguments as of `data.find_problems`."""
    yield from _wrong_optimizer(right)
    yield from _wrong_search(right, command)
    target = str(right.get("scheduler._target_"))
    if not target.startswith(SCHEDULES):
        return
    schedule = target.removeprefix(SCHEDULES)
    if unlimited := list(_unknown_length(schedule, right)):
        yield from unlimited
        return
    yield from _wrong_milestones(right)
    yield from _wrong_roles(schedule, right)
    # A short trial of a long schedule is no mistake: only what the command line says itself is.
    if right.get("trainer.limit_train_batches", 1.0) == 1.0:
        yield from _too_late(schedule, right, command)


def _wrong_search(right: Mapping[str, Any], command: Asked) -> Iterator[str]:
    """A search for a value, `tune`, which is one process's work and no job of a sweep."""
    tune = right.get("tune")
    if tune is None:
        return
    if command.sweeps:
        yield f"tune={tune}: looks for a value and trains nothing; leave out -m"
    if right.get("ckpt_path") is not None:
        yield f"tune={tune}: for a new run; leave out resume and ckpt_path"
    devices = right.get("trainer.devices")
    if tune == "batch_size" and (devices not in (1, "1") or right.get("trainer.num_nodes", 1) != 1):
        yield (
            f"tune=batch_size: for one device, not trainer.devices={devices}; set trainer.devices=1 "
            "trainer.strategy=auto, and multiply what it finds"
        )
    if tune == "lr" and "optim.lr" not in right:
        yield "tune=lr: this optimizer has no optim.lr to look for"


def _wrong_optimizer(right: Mapping[str, Any]) -> Iterator[str]:
    if not str(right.get("optim._target_")).startswith("torch.optim."):
        return
    momentum, dampening = right.get("optim.momentum", 0), right.get("optim.dampening", 0)
    if right.get("optim.nesterov") is True and (not momentum or dampening):
        yield (
            f"optim.nesterov=true: needs a momentum above 0 and no dampening, not optim.momentum={momentum}"
            + (f" optim.dampening={dampening}" if dampening else "; set optim.momentum=0.9")
        )
    fused = right.get("optim.fused") is True
    for key in ("foreach", "differentiable"):
        if fused and right.get(f"optim.{key}") is True:
            yield f"optim.{key}=true: does not go with optim.fused=true; set optim.fused=null"


def _unknown_length(schedule: str, right: Mapping[str, Any]) -> Iterator[str]:
    fractions = isinstance(milestones := right.get("scheduler.milestones"), list) and any(
        milestone < 1 for milestone in milestones
    )
    if schedule not in NEED_LENGTH and not (schedule == "multistep" and fractions):
        return
    if right.get("trainer.max_epochs") == -1 and right.get("trainer.max_steps") == -1:
        yield (
            f"trainer.max_epochs=-1: scheduler={schedule} needs a known length; set trainer.max_epochs or "
            "trainer.max_steps, or choose scheduler=constant, step, exponential or plateau"
        )


def _wrong_milestones(right: Mapping[str, Any]) -> Iterator[str]:
    milestones = right.get("scheduler.milestones")
    if not isinstance(milestones, list):
        return
    for milestone in milestones:
        if milestone >= 1 and milestone % 1:
            yield (
                f"scheduler.milestones={milestones}: {milestone} is no fraction below 1 and no whole number"
            )
            return


def _wrong_roles(schedule: str, right: Mapping[str, Any]) -> Iterator[str]:
    start, model = "scheduler.role_ends.", str(right.get("model._target_"))
    if schedule != "linear" or not model.startswith("project."):
        return
    known = AIRBENCH_ROLES if model == AIRBENCH else ()
    for key, end in right.items():
        if not key.startswith(start):
            continue
        role = key.removeprefix(start)
        if role not in known:
            why = f"choose from {', '.join(known)}, or" if known else "this model names no roles;"
            yield f"{key}: {why} leave it out with '~{key}'"
        elif not isinstance(end, int | float) or not 0 < end <= 1:
            yield f"{key}={end}: must be above 0 and at most 1"


def _too_late(schedule: str, right: Mapping[str, Any], command: Asked) -> Iterator[str]:
    interval = right.get("scheduler.interval")
    found: Length = length(right)
    total = found.steps if interval == "step" else found.epochs
    if total is None or interval not in ("step", "epoch"):
        return
    told = f"the training has {total:,} {interval}s"
    if schedule == "step" and "scheduler.step_size" in command.keys:
        size = right.get("scheduler.step_size")
        if isinstance(size, int) and size >= total:
            yield f"scheduler.step_size={size}: without effect, {told}; choose less than {total}"
    if schedule == "multistep" and "scheduler.milestones" in command.keys:
        milestones = right.get("scheduler.milestones")
        late = [one for one in milestones if one >= total] if isinstance(milestones, list) else []
        if late and not any(one < 1 for one in late):
            yield (
                f"scheduler.milestones={milestones}: {late[0]} comes too late, {told}; choose less than "
                f"{total}, or a fraction below 1"
            )
