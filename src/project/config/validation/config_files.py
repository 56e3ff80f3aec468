"""Keys that configuration files set: where they stand, and those that nothing reads."""

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig, OmegaConf

from project.config.validation.command_request import asked
from project.config.validation.groups import GROUPS, KEYS, OPTIONAL, PRESETS
from project.config.validation.yaml_defaults import flat
from project.runtime import yaml_files
from project.runtime.text import did_you_mean

KNOWN = ("hydra", *dict.fromkeys((*GROUPS, *(key.partition(".")[0] for key in KEYS), *OPTIONAL)))
"""Keys at the top that a run or a sweep reads."""
SURE = 0.8
"""Likeness of names from which on one is a typo of the other."""
NOTHING_READS = "nothing reads it"


def unknown_keys(config: DictConfig, leaves: Mapping[str, Any], declared: Mapping[str, Any]) -> Iterator[str]:
    """Yield keys of files that nothing reads, at the top and in `paths`: those of others are arguments.

    A key that another one refers to is read. So is one that the primary configuration declares, unless its
    name is nearly that of a key that a run reads.

    Args:
        config: composed, with Hydra's own node.
        leaves: all values as they are written, by dotted key.
        declared: those of the YAML files of the chosen options.
    """
    declared_here = {key.partition(".")[0] for key in declared}.difference(PRESETS)
    declared_here |= {key for key in declared if key.startswith("paths.")}
    for name in (*map(str, config), *(key for key in leaves if key.startswith("paths."))):
        own = name in declared_here and not get_close_matches(name, KNOWN, n=1, cutoff=SURE)
        if own or name in (*KNOWN, *KEYS) or _is_referred_to(name, config, leaves):
            continue
        if place_of(name, config, NOTHING_READS):  # what an earlier run was configured with is its own
            yield f"{name}: {NOTHING_READS}; {_remedy(name, config, declared)}"


def _is_referred_to(name: str, config: DictConfig, leaves: Mapping[str, Any]) -> bool:
    """Tell whether an expression has a key, as in `${name}`, `${..name}` and `${oc.select:name}`, or a file
    has an alias of its value.
    """
    hydra = flat("hydra", OmegaConf.to_container(config.hydra, resolve=False))  # folders are named there
    written = "\n".join(str(raw) for raw in (*leaves.values(), *dict(hydra).values()) if "${" in str(raw))
    last = name.rpartition(".")[2]
    pattern = rf"\$\{{(oc\.select:)?\s*(\.*{re.escape(name)}|\.+{re.escape(last)})(?!\w)"
    return re.search(pattern, written) is not None or any(
        yaml_files.has_alias(file, name) for file in yaml_files.loaded.values()
    )


def _remedy(name: str, config: DictConfig, declared: Mapping[str, Any]) -> str:
    group, _, key = name.partition(".")
    if name == "_target_":
        return "write it in the block of a group, as in model:"
    if name in PRESETS:
        return "begin its file with # @package _global_"
    if group == "paths":
        known = [other.removeprefix("paths.") for other in declared if other.startswith("paths.")]
        return did_you_mean(key, known, "paths.")
    if key and group in config:
        return f"write {key}: … in a block {group}:"
    return did_you_mean(name, ["_global_"] if name.startswith("_") else KNOWN)


def place_of(key: str, config: DictConfig, line: str) -> str:
    """Locate a key's value, as messages begin (see `config_files.place`), if a file is to blame for it.

    That is the file of a preset or of a folder beside the main one, and for names that nothing reads any
    file; never one whose key the command line sets.

    Args:
        key: dotted.
        config: composed, with Hydra's own node.
        line: what is said of the key.
    """
    if key in asked(config).keys.difference(PRESETS) or key.startswith(("+", "~")):
        return ""
    wanted = key.removesuffix("._target_") if "_target_:" in line else key
    choices = {f"{group}/{option}" for group, option in config.hydra.runtime.choices.items()}
    root = wanted in map(str, config)
    last_first = list(reversed(yaml_files.loaded))
    for path in sorted(last_first, key=lambda path: path not in choices):
        preset = path.partition("/")[0] in PRESETS or not yaml_files.is_main(path)
        if (preset or NOTHING_READS in line) and (where := yaml_files.place_of(path, wanted, root)):
            return where
    return ""
