"""Check optimizer, schedule and monitored metrics: combinations of options, and options without effect."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from project.config.metrics import logged_metrics
from project.config.source_index import LIBRARIES, constant_of, source_of
from project.config.validation.command_request import CommandRequest
from project.config.validation.data import reason_without_validation, training_length
from project.runtime.text import did_you_mean

MAY_LOG = ("callbacks.", "model.", "loss.")
"""Groups whose classes may log additional metrics."""
RESERVED_NAMES = ("images", "lr", "grad_norm", "weight")
"""Names of other logged values."""
LOGS = re.compile(r"\b(?:self|module|pl_module)\.log(?:_dict)?\(")


def find_problems(right: Mapping[str, Any], command: CommandRequest) -> Iterator[str]:
    """Yield a line for each invalid option; arguments as for `data.find_problems`."""
    yield from _wrong_optimizer(right)
    yield from _wrong_tuning(right, command)
    # A short trial with a long schedule is allowed; only keys of the command line are checked.
    if right.get("trainer.limit_train_batches", 1.0) == 1.0:
        yield from _too_late(right, command)
    yield from _wrong_names(right)
    yield from _wrong_monitors(right)


def _wrong_tuning(right: Mapping[str, Any], command: CommandRequest) -> Iterator[str]:
    """Yield a line if `tune` cannot search for a value."""
    tune = right.get("tune")
    if tune is None:
        return
    if command.sweeps:
        yield f"tune={tune}: searches for a value without training; leave out -m"
    if right.get("ckpt_path") is not None:
        yield f"tune={tune}: needs a new run; leave out resume and ckpt_path"
    devices = right.get("trainer.devices")
    if tune == "batch_size" and (devices not in (1, "1") or right.get("trainer.num_nodes", 1) != 1):
        yield (
            f"tune=batch_size: needs one device (got trainer.devices={devices}); set trainer.devices=1 "
            "trainer.strategy=auto, and multiply the result"
        )
    if "optim._target_" not in right:
        yield f"tune={tune}: for tasks that take optim; set the values of this task yourself"
    elif tune == "lr" and "optim.lr" not in right:
        yield "tune=lr: this optimizer has no optim.lr; choose another optimizer"


def _wrong_optimizer(right: Mapping[str, Any]) -> Iterator[str]:
    if str(right.get("optim._target_")).startswith("project.modules.optim.sam."):
        batches, precision = right.get("trainer.accumulate_grad_batches"), right.get("trainer.precision")
        if isinstance(batches, int) and batches > 1:
            yield (
                f"trainer.accumulate_grad_batches={batches}: SAM computes two gradients per batch (expected "
                "1); choose a larger data.batch_size, or another optimizer"
            )
        if str(precision) in ("16-mixed", "16"):
            yield (
                f"trainer.precision={precision}: SAM does not work with a gradient scaler (expected 32-true "
                "or bf16-mixed); set trainer.precision=bf16-mixed"
            )
    if not str(right.get("optim._target_")).startswith("torch.optim."):
        return
    momentum, dampening = right.get("optim.momentum", 0), right.get("optim.dampening", 0)
    if right.get("optim.nesterov") is True and (not momentum or dampening):
        yield (
            f"optim.nesterov=true: needs a momentum above 0 and no dampening (got optim.momentum={momentum}"
            + (
                f" optim.dampening={dampening}); set dampening=0"
                if dampening
                else "); set optim.momentum=0.9"
            )
        )
    fused = right.get("optim.fused") is True
    for key in ("foreach", "differentiable"):
        if fused and right.get(f"optim.{key}") is True:
            yield f"optim.{key}=true: incompatible with optim.fused=true; set optim.fused=null"


def _too_late(right: Mapping[str, Any], command: CommandRequest) -> Iterator[str]:
    """Yield a line if the learning rate would first change after the end of the training."""
    interval = right.get("scheduler.interval")
    if interval not in ("step", "epoch"):
        return
    length = training_length(right)
    total = length.steps if interval == "step" else length.epochs
    if total is None:
        return
    total_text = f"the training has {total:,} {interval}s"
    size, milestones = right.get("scheduler.step_size"), right.get("scheduler.milestones")
    if "scheduler.step_size" in command.keys and isinstance(size, int) and size >= total:
        yield f"scheduler.step_size={size}: no effect, {total_text}; choose less than {total}"
    if "scheduler.milestones" in command.keys and isinstance(milestones, list):
        late = [one for one in milestones if one >= total]
        if late and late[0] >= 1:
            yield (
                f"scheduler.milestones={milestones}: {late[0]} is never reached, {total_text}; choose below "
                f"{total}, or a fraction below 1"
            )


def _wrong_monitors(right: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each monitored metric that is not logged or has the wrong mode."""
    task, metrics = (_nested(right, group) for group in ("task", "metrics"))
    directions = logged_metrics(task, metrics)
    targets = {key: str(target) for key, target in right.items() if key.endswith("._target_")}
    if (
        not directions
        or "monitor" not in right
        or any(_may_log(key, target) for key, target in targets.items())
    ):
        return
    watched = {
        key: str(value)
        for key, value in right.items()
        if key.rpartition(".")[2] == "monitor"
        and value is not None
        and (key in ("monitor", "scheduler.monitor") or f"{key.removesuffix('monitor')}_target_" in right)
    }
    for key, metric in watched.items():
        if metric in directions:
            yield from _wrong_mode(key, metric, directions[metric], right)
        elif key == "monitor" or metric != watched.get(
            "monitor"
        ):  # the same metric as `monitor` is reported once
            if metric.startswith("test/"):
                known = ", ".join(directions)
                yield f"{key}={metric}: the test split is evaluated only at the end; choose from {known}"
            elif metric.removeprefix("train/") in metrics:
                yield (
                    f"{key}={metric}: is not measured during training, to save time; set "
                    f"{key}={metric.replace('train/', 'val/')}, or task.train_metrics=true"
                )
            elif any(metric.startswith(f"{name}_") for name in directions):
                continue  # a metric of several values, such as one for each class
            else:
                yield f"{key}={metric}: {did_you_mean(metric, directions)}"
    yield from _never_validated(watched, right)


def _nested(right: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Return the values of a group as nested dicts, two levels deep."""
    nested: dict[str, Any] = {}
    for key, value in right.items():
        first, _, rest = key.partition(".")
        if first == group and rest:
            name, _, below = rest.partition(".")
            if below:
                nested.setdefault(name, {})[below] = value
            else:
                nested[name] = value
    return nested


def _wrong_names(right: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each configured metric whose name is not free or not a word."""
    taken = constant_of(str(right.get("task._target_")), "METRICS")
    for name in _nested(right, "metrics"):
        if name in (*(taken if isinstance(taken, dict) else ()), *RESERVED_NAMES):
            yield f"metrics.{name}: the task logs a value with this name; choose another name"
        elif not re.fullmatch(r"[A-Za-z]\w*", name) or name.startswith("best_"):
            yield f"metrics.{name}: not allowed as a name (expected letters, digits and _); choose another"


def _may_log(key: str, target: str) -> bool:
    """Return True for a class that may log more metrics; in this package, if its source calls `log`."""
    if not key.startswith(MAY_LOG) or target.startswith(LIBRARIES):
        return False
    return not target.startswith("project.") or LOGS.search(source_of(target)) is not None


def _wrong_mode(key: str, metric: str, better: str, right: Mapping[str, Any]) -> Iterator[str]:
    where = f"{key.removesuffix('monitor')}mode"
    mode = right.get(where)
    if mode not in ("min", "max") or mode == better or not better:
        return
    if key != "monitor" and (metric, mode) == (right.get("monitor"), right.get("mode")):
        return  # reported for the key `mode`
    yield f"{where}={mode}: {key}={metric} is better when {better}imal; set {where}={better}"


def _never_validated(watched: Mapping[str, str], right: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line if a validation metric is monitored but the training has no validation."""
    schedule = watched.get("scheduler.monitor", "")
    if reason := reason_without_validation(right):
        if schedule.startswith("val/"):
            yield (
                f"scheduler.monitor={schedule}: there are no validation images ({reason}); set "
                "monitor=train/loss mode=min, or choose another scheduler"
            )
        return
    every, epochs = right.get("trainer.check_val_every_n_epoch"), right.get("trainer.max_epochs")
    waiting = [key for key, metric in watched.items() if metric.startswith("val/")]
    if isinstance(every, int) and isinstance(epochs, int) and 0 < epochs < every and waiting:
        yield (
            f"trainer.check_val_every_n_epoch={every}: no validation within trainer.max_epochs={epochs}, but "
            f"{waiting[0]}={watched[waiting[0]]} needs one; choose at most {epochs}, or "
            "trainer.limit_val_batches=0 to skip validation"
        )
