"""Groups of a configuration that are parts of others: which of them a run uses, and which keys they lose.

A task takes its parts by reference, as in `network: ${model}`. A group that nothing refers to is left out of
the run. A group whose `_target_` is replaced loses the default arguments of the former class.
"""

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from project.config.signatures import Signature, signature_of
from project.runtime.yaml_files import raw_child

OBJECTS = ("task", "model", "data", "augment", "optim", "scheduler", "loss", "trainer")
"""Groups of one object each."""
PARTS = ("model", "loss", "optim", "scheduler", "augment", "metrics")
"""Groups that a run needs only if something used refers to them."""
PARAMETER_GROUP_KEYS = ("layerwise_lr_decay", "weight_decay_norm_bias")
"""Keys of `optim` for `parameter_groups`; all others are arguments of the optimizer."""
WHOLE_GROUP = re.compile(r"\$\{(\w+)\}")
"""A reference to a whole group."""


def present(config: DictConfig) -> list[str]:
    """Return which groups of one object a configuration contains."""
    return [group for group in OBJECTS if isinstance(raw_child(config, group), DictConfig)]


def parts_of(task: Mapping[str, Any]) -> dict[str, str]:
    """Return the groups that a task takes as arguments, by argument.

    Args:
        task: its configuration, not resolved.
    """
    found = {name: referenced_group(value) for name, value in task.items()}
    return {name: group for name, group in found.items() if group}


def referenced_group(written: Any) -> str:
    """Return the group that a value, not resolved, is a reference to; empty for other values."""
    match = WHOLE_GROUP.fullmatch(written) if isinstance(written, str) else None
    return match[1] if match and match[1] in (*OBJECTS, *PARTS) else ""


def referenced_groups(config: DictConfig) -> set[str]:
    """Return the groups of `PARTS` that something used refers to, as in `${model}` and `${optim.lr}`."""
    written = {
        name: str(OmegaConf.to_container(node) if OmegaConf.is_config(node) else node)
        for name in map(str, config)
        if name != "hydra" and (node := raw_child(config, name)) is not None
    }
    used: set[str] = set()
    while True:
        users = [text for name, text in written.items() if name not in PARTS or name in used]
        found = {part for part in PARTS if any(re.search(rf"[{{:]{part}[.,}}]", text) for text in users)}
        if found <= used:
            return used
        used |= found


def drop_unused_groups(config: DictConfig) -> None:
    """Remove the groups of `PARTS` that nothing refers to; a configuration without a task keeps all."""
    if not isinstance(raw_child(config, "task"), DictConfig):
        return
    used = referenced_groups(config)
    with open_dict(config):
        for group in PARTS:
            if group in config and group not in used:
                del config[group]


def drop_former_arguments(
    config: DictConfig, declared: Mapping[str, Any], overridden: frozenset[str]
) -> None:
    """Remove the arguments of a former class from groups whose `_target_` was replaced.

    Arguments that the new class takes, that the command line sets or that a preset changed stay. So does
    `num_classes` of a network whose constructor accepts any arguments.

    Args:
        config: composed, changed in place.
        declared: values in the YAML files of the chosen options, by dotted key.
        overridden: keys that the command line sets.
    """
    for group in present(config):
        node = config[group]
        target, former = raw_child(node, "_target_"), declared.get(f"{group}._target_")
        if not isinstance(target, str) or former in (None, target) or "${" in target:
            continue
        found = signature_of(target)
        if not isinstance(found, Signature):
            continue
        taken = {*found.arguments, *(PARAMETER_GROUP_KEYS if group == "optim" else ())}
        if group == "model" and found.anything:  # constructors of libraries pass the number of classes on
            taken.add("num_classes")
        for name in [str(key) for key in node]:
            key = f"{group}.{name}"
            is_set = any(one == key or one.startswith(f"{key}.") for one in overridden)
            if name.startswith("_") or name in taken or is_set or not _is_default(node, name, key, declared):
                continue
            with open_dict(node):
                del node[name]


def _is_default(node: DictConfig, name: str, key: str, declared: Mapping[str, Any]) -> bool:
    value = raw_child(node, name)
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    if isinstance(plain, dict) and plain:
        return any(one.startswith(f"{key}.") for one in declared)
    return key in declared and declared[key] == plain
