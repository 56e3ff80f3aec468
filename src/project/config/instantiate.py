"""Build objects from groups of a configuration."""

from typing import Any

import lightning as L
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from torch import nn

from project.config import allowed_targets, hydra_patches
from project.config.derived_values import require_image_data
from project.config.validation import groups
from project.config.validation.groups import PARAMETER_GROUP_KEYS
from project.errors import InputError, one_line
from project.modules.classifier import ImageClassifier
from project.runtime import secrets

REFUSALS = (ValueError, TypeError, ImportError, MisconfigurationException, HydraException)
"""Exceptions of constructors that refuse a value."""


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
        values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        self.values: dict[str, Any] = values
        secrets.remember_all(self.values)
        self.redacted: dict[str, Any] = secrets.redact(self.values)

    def build(self, group: str, **more: Any) -> Any:
        """Build the objects of a group (see `build`)."""
        return build(self.values, group, **more)

    def build_module(self) -> ImageClassifier:
        """Build the LightningModule (see `build_module`)."""
        return build_module(self.values, self.redacted)


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
        with hydra_patches.allowing(str(found.name) for found in allowed_targets.find(node, group)):
            made = instantiate(node, _convert_="all", **more)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, InputError):
            raise cause from None
        if isinstance(cause, REFUSALS):
            raise InputError(f"{group}: {one_line(cause)}") from error
        raise
    if group == "data":
        require_image_data(type(made), config[group]["_target_"])
    is_lightning = isinstance(made, L.LightningModule)
    if group in ("model", "loss") and (is_lightning or not isinstance(made, nn.Module)):
        got = "LightningModule" if is_lightning else type(made).__name__
        raise InputError(groups.refusal(group, config[group]["_target_"], got))
    return made


def build_module(config: dict[str, Any], record: dict[str, Any]) -> ImageClassifier:
    """Build the LightningModule of a run's configuration, with initial weights.

    Args:
        config: of the run, resolved, plain values.
        record: the configuration that checkpoints are to hold, without secrets.

    Raises:
        InputError: a constructor refuses the values.
    """
    optim = config["optim"]
    return ImageClassifier(
        network=build(config, "model"),
        loss=build(config, "loss"),
        optimizer=build(config, "optim"),
        scheduler=build(config, "scheduler"),
        **{name: optim[name] for name in PARAMETER_GROUP_KEYS if name in optim},
        compile=config.get("compile", False),
        channels_last=config.get("channels_last", False),
        tta=config.get("tta", "none"),
        config=record,
    )
