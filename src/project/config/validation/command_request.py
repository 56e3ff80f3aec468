"""What the command asks for beside the values: which keys it sets, and where the run will be."""

from typing import NamedTuple

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from project.config.hydra_patches import BASIC_LAUNCHER

LOCAL_LAUNCHERS = (
    "hydra_plugins.project_sweeps.launchers.LocalLauncher",
    BASIC_LAUNCHER,
)


class Asked(NamedTuple):
    """Of a command line.

    Args:
        keys: that it sets one by one.
        here: the run will be on this machine.
        sweeps: it starts a sweep.
    """

    keys: frozenset[str]
    here: bool
    sweeps: bool = False


def overrides_of(config: DictConfig) -> list[str]:
    """Overrides as they were typed, Hydra's own included; they may hold interpolations."""
    typed: list[str] = []
    for part in (config.hydra.overrides.task, config.hydra.overrides.hydra):
        written = OmegaConf.to_container(part, resolve=False) if part is not None else []
        assert isinstance(written, list)
        typed += map(str, written)
    return typed


def asked(config: DictConfig) -> Asked:
    """Tell what the command asks for.

    Args:
        config: composed, with Hydra's own node.
    """
    return Asked(
        frozenset(text.partition("=")[0].lstrip("+~") for text in overrides_of(config)),
        config.hydra.launcher.get("_target_") in LOCAL_LAUNCHERS,
        config.hydra.mode == RunMode.MULTIRUN,
    )
