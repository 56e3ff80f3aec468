"""Instantiate the groups of a configuration."""

import inspect
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import lightning as L
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from torch import nn

from project.config import allowed_targets, hydra_patches
from project.config.parts import PARAMETER_GROUP_KEYS, parts_of
from project.config.validation import groups
from project.errors import InputError, one_line
from project.runtime import secrets

REFUSALS = (ValueError, TypeError, ImportError, MisconfigurationException, HydraException)
"""Exceptions by which constructors reject a value."""


KINDS: Mapping[str, type] = {
    "LightningModule": L.LightningModule,
    "LightningDataModule": L.LightningDataModule,
    "nn.Module": nn.Module,
}
"""Classes that groups may ask for, special ones first."""


FULL_KEY = re.compile(r"^full_key: (\S+)$", re.MULTILINE)
"""Key of the object within a group, in Hydra's messages."""


class ResolvedConfig:
    """A run's configuration with every value resolved, and without secrets where it is written down.

    Args:
        composed: the configuration; its secrets are noted, so that no output shows them.

    Attributes:
        values: plain values.
        redacted: the same for files, loggers and checkpoints, without secrets.
    """

    def __init__(self, composed: DictConfig) -> None:
        self.composed = composed
        self.values = resolve(composed)
        secrets.remember_all(self.values)
        self.redacted: dict[str, Any] = secrets.redact(self.values)

    def build(self, group: str, **more: Any) -> Any:
        """Build the objects of a group (see `build`)."""
        return build(self.values, group, **more)

    def build_task(self) -> L.LightningModule:
        """Build the LightningModule (see `build_task`)."""
        return build_task(self.values)


def resolve(composed: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as plain values, in which `task` still refers to its parts."""
    values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    written: Any = OmegaConf.to_container(composed.task)
    values["task"] |= {name: f"${{{group}}}" for name, group in parts_of(written).items()}
    return dict(values)


def build(config: dict[str, Any], group: str, **more: Any) -> Any:
    """Build the object, or dict of objects, of a configuration group.

    Raises:
        InputError: it is not allowed to be made, its constructor refuses the values, or it is of another kind
            than the group is for.
    """
    allowed_targets.confirm(config[group], group)
    try:
        node = config[group]
        if group == "optim":
            node = {name: value for name, value in node.items() if name not in PARAMETER_GROUP_KEYS}
        if group == "task":
            node = {**node, "_partial_": True}
        with hydra_patches.allowing(str(found.name) for found in allowed_targets.find(node, group)):
            made = instantiate(node, _convert_="all", **more)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, InputError):
            raise cause from None
        if isinstance(cause, REFUSALS):
            inside = FULL_KEY.search(str(error))
            key = f"{group}.{inside[1]}" if inside else group
            raise InputError(f"{key}: {one_line(cause)}") from error
        raise
    kind = _kind_of(made.func if isinstance(made, partial) else type(made))
    if kind != groups.WANTED.get(group, kind):
        raise InputError(groups.refusal(group, config[group]["_target_"], kind))
    return made


def _kind_of(made: Any) -> str:
    """Return the kind of a class, as messages name it."""
    if not inspect.isclass(made):
        return "function"
    return next((name for name, kind in KINDS.items() if issubclass(made, kind)), made.__name__)


def build_task(config: dict[str, Any]) -> L.LightningModule:
    """Build the LightningModule of a run's configuration, with initial weights.

    Arguments of `task` that refer to a whole group, as `network: ${model}`, are built as that group.

    Args:
        config: of the run, resolved by `resolve`.

    Raises:
        InputError: a constructor refuses the values.
    """
    task = dict(config["task"])
    built = {name: build(config, group) for name, group in parts_of(task).items()}
    factory = build({"task": {name: value for name, value in task.items() if name not in built}}, "task")
    try:
        module: L.LightningModule = factory(**built)
    except InputError:
        raise
    except REFUSALS as error:
        raise InputError(f"task: {one_line(error)}") from error
    return module
