"""Groups and keys that a run requires, and the base class that each group expects."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from omegaconf import DictConfig

from project.config.parts import PARTS, present, referenced_groups
from project.config.source_index import MAX_DEPTH, bases_of
from project.runtime.text import nearest_names
from project.runtime.yaml_files import raw_child

GROUPS: Mapping[str, str] = {
    **dict.fromkeys(
        ("task", "model", "data", "augment", "optim", "loss", "trainer"), "choose another option of it"
    ),
    "scheduler": "scheduler=constant keeps the learning rate",
    "metrics": "metrics=default adds none to those of the task",
    "callbacks": "leave single ones out, as in '~callbacks.early_stopping'",
    "logger": "logger=none logs nothing",
    "paths": "change single ones, as in paths.outputs=DIR",
}
"""Required groups, with the fix if one is missing."""

FACTORIES: Mapping[str, int] = {"optim": 1, "scheduler": 2}
"""Groups with `_partial_: true`, and the number of arguments that the run passes by position."""
DICTS = ("callbacks", "logger", "metrics")
"""Groups that define several objects by name, and take several options: `logger=[tensorboard,wandb]`."""
PRESETS = ("experiment", "sweep", "debug")
"""Groups whose options set keys of other groups."""

KEYS: Mapping[str, str] = {
    "name": "the folder of runs bears it, as in name=trial",
    "seed": "order and weights are drawn from it, as in seed=1",
    "monitor": "checkpoints are chosen by it, as in monitor=val/acc",
    "mode": "max if larger is better, as in mode=max",
    "compile": "true or false, as in compile=false",
    "channels_last": "true or false, as in channels_last=false",
    "deterministic": "true or false, as in deterministic=false",
    "tta": "as in tta=none",
    "ckpt_path": "as in ckpt_path=null",
    "paths.data": "a folder, as in paths.data=data",
    "paths.image_cache": "a folder or null, as in paths.image_cache=null",
    "paths.outputs": "a folder, as in paths.outputs=outputs",
    "paths.run": "the run folder; it follows paths.outputs",
}
"""Required keys outside of objects, with an example."""

OPTIONAL = ("resume", "resume_force", "tune", "seeds", "folds", "retry_failed", "join")
"""Optional top-level keys of a run or sweep."""

KINDS: Mapping[tuple[str, str], str] = {
    **{
        (package, name): name
        for package in ("lightning", "pytorch_lightning")
        for name in ("LightningModule", "LightningDataModule", "Callback", "Logger", "Trainer")
    },
    ("project", "ImageDataModule"): "ImageDataModule",
    ("torchmetrics", "Metric"): "Metric",
    ("torch", "Module"): "nn.Module",
    ("torch", "Optimizer"): "Optimizer",
    ("torch", "LRScheduler"): "LRScheduler",
    ("torch", "Dataset"): "Dataset",
}
"""Kinds of classes, by package and name of the base class."""

METRIC_TARGET = re.compile(r"metrics\.\w+\._target_")
WANTED: Mapping[str, str] = {
    "task": "LightningModule",
    "model": "nn.Module",
    "loss": "nn.Module",
    "data": "LightningDataModule",
}
"""The kind of each group's class."""
SUBKINDS: Mapping[str, str] = {"ImageDataModule": "LightningDataModule"}
"""Kinds that are special cases of another kind."""

REMEDIES: Mapping[str, str] = {
    "task": "name a LightningModule; a plain network is a model, as in model._target_=package.Class",
    "model": (
        "name a torch.nn.Module that maps images to logits; a LightningModule is a task, as in task=custom "
        "task._target_=package.Class"
    ),
    "loss": "name a torch.nn.Module that maps logits and targets to their mean loss",
    "data": "name a LightningDataModule, such as one derived from "
    "project.datamodules.image_base.ImageDataModule",
}


def removed_groups(config: DictConfig) -> Iterator[str]:
    """Yield a line for each missing required group."""
    for group, remedy in GROUPS.items():
        if group in PARTS and group not in referenced_groups(config):
            continue
        if not isinstance(config.get(group), DictConfig):
            yield f"~{group}: a run needs it; {remedy}"
    for group, option in config.hydra.runtime.choices.items():
        if group in GROUPS and group not in DICTS and group in config and not isinstance(option, str):
            shown = f"[{','.join(option)}]" if option is not None else "null"
            yield f"{group}={shown}: one option is needed; -m {group}=A,B runs a job with each"


def unused_overrides(config: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """Yield a line for each override of a group that the task does not use.

    Args:
        config: composed, with Hydra's own node.
        overrides: as they were typed.
    """
    for text in overrides:
        group = text.lstrip("+").partition("=")[0].partition(".")[0]
        if group in PARTS and group not in config:
            choices = config.hydra.runtime.choices
            yield f"{text}: has no effect, task={choices.get('task')} takes no {group}; leave it out"


def removed_keys(leaves: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each missing required key.

    Args:
        leaves: all values, by dotted key.
    """
    for key, remedy in KEYS.items():
        if key not in leaves:
            yield f"~{key}: a run needs it; {remedy}"


def wrong_groups(config: DictConfig, leaves: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each group without a valid `_target_` or `_partial_`.

    Args:
        config: composed.
        leaves: all values, by dotted key.
        right: values that are right by themselves, by dotted key.
    """
    for group in present(config):
        yield from _wrong_target(group, leaves, right)
        partial = bool(right.get(f"{group}._partial_", False))
        if partial != (group in FACTORIES):
            needed = str(group in FACTORIES).lower()
            yield f"{group}._partial_={str(partial).lower()}: must be {needed}; leave it as it is"
    for group in (group for group in DICTS if group in config):
        for name in config[group]:
            key = f"{group}.{name}"
            if isinstance(raw_child(config[group], name), DictConfig):
                for line in _wrong_target(key, leaves, right):
                    near = nearest_names(name, [str(other) for other in config[group] if other != name])
                    yield line + (f"; did you mean {group}.{near[0]}?" if near else "")
            elif key in right:
                yield (
                    f"{key}={right[key]}: is not an object (expected keys with a _target_); leave it out "
                    f"with '~{key}'"
                )


def _wrong_target(place: str, leaves: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[str]:
    key = f"{place}._target_"
    target = right.get(key)
    if (isinstance(target, str) and target.strip()) or (key in leaves and key not in right):
        return
    given = "" if key not in right else f"={target}"
    yield f"{key}{given}: must name a class, as in {key}=package.module.Class"


def wrong_kinds(right: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each group whose class is known to be of another kind.

    Args:
        right: values that are right by themselves, by dotted key.
    """
    for group in WANTED:
        target = right.get(f"{group}._target_")
        found = kinds_of(target, MAX_DEPTH) if isinstance(target, str) else frozenset()
        if other := {kind for kind in found if SUBKINDS.get(kind, kind) != WANTED[group]}:
            yield refusal(group, str(target), min(other))
    for key, target in right.items():
        if METRIC_TARGET.fullmatch(key):
            found = kinds_of(str(target), MAX_DEPTH)
            if found - {"Metric"}:
                yield (
                    f"{key}={target}: no class for metrics (expected torchmetrics.Metric, got {min(found)}); "
                    "name a metric, and each one of a collection by itself"
                )


def refusal(group: str, target: str, got: str) -> str:
    """Return the line that refuses a group's target, which is, or makes, an object of another kind."""
    kind = f"{group}._target_={target}: no class for {group} (expected {WANTED[group]}, got {got})"
    return f"{kind}; {REMEDIES[group]}"


@cache
def kinds_of(target: str, depth: int) -> frozenset[str]:
    """Return the kinds of a class as its source declares them; none if the source is not clear.

    Args:
        target: dotted name.
        depth: maximum number of classes from here to a known base class.
    """
    if kind := KINDS.get((target.partition(".")[0], target.rpartition(".")[2])):
        return frozenset([kind])
    if target.startswith("torch.nn."):  # spares a look into torch's sources, which takes 30 ms
        return frozenset(["nn.Module"])
    if not depth:
        return frozenset()
    return frozenset().union(*(kinds_of(base, depth - 1) for base in bases_of(target)))
