"""Compare the keys of a configuration with declarations in YAML files and constructors.

- `declared_values` reads the values in the YAML files of the chosen options.
- `find_problems` reports keys that nothing reads, and arguments that a constructor needs and does not get.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from omegaconf import DictConfig, OmegaConf

from project.config import config_files
from project.config.source_index import Missing, Signature, signature_of
from project.config.validation.command_request import command_request, overrides_of
from project.config.validation.groups import (
    DICTS,
    FACTORIES,
    GROUPS,
    KEYS,
    OBJECTS,
    OPTIONAL,
    PARAMETER_GROUP_KEYS,
    PRESETS,
)
from project.runtime import yaml_files
from project.runtime.text import did_you_mean, nearest_names
from project.runtime.yaml_files import config_folders, raw_child, read_mapping

NOTHING_READS = "nothing reads it"
KNOWN = ("hydra", *dict.fromkeys((*GROUPS, *(key.partition(".")[0] for key in KEYS), *OPTIONAL)))
"""Keys at the top that a run or a sweep reads."""
TYPO_LIKENESS = 0.8
"""Likeness of names from which on one is a typo of the other."""
SET_BY_THE_RUN: Mapping[str, str] = {
    "trainer.callbacks": "callbacks are keys of the group callbacks",
    "trainer.logger": "loggers are keys of the group logger; logger=none logs nothing",
    "trainer.default_root_dir": "the run folder follows paths.outputs and name",
    "trainer.plugins": "the run sets it, for its own processes",
    "trainer.enable_checkpointing": (
        "checkpoints are written by callbacks.best and callbacks.last; leave those out with "
        "'~callbacks.best' '~callbacks.last'"
    ),
    "trainer.enable_progress_bar": "callbacks.progress shows it; leave that out with '~callbacks.progress'",
}
"""Arguments of a trainer that are not read, and what sets them."""


def declared_values(config: DictConfig) -> Mapping[str, Any]:
    """Return the values in the YAML files of the chosen options, by dotted key.

    Args:
        config: composed by Hydra, with its own node.
    """
    sources = config_folders(config.hydra.runtime.config_sources)
    choices = [
        (str(group), option)
        for group, option in config.hydra.runtime.choices.items()
        if group in config and isinstance(option, str)
    ]
    return _declared_by(tuple(sources), tuple(choices), config.hydra.job.config_name)


def flat(key: str, written: Any) -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of all values in `written`, which stands at `key`. A list is one value."""
    if not isinstance(written, dict) or not written:
        yield key, written
        return
    for name, child in written.items():
        yield from flat(f"{key}.{name}" if key else str(name), child)


@cache  # the jobs of a sweep make the same few choices
def _declared_by(
    folders: tuple[Path, ...], choices: tuple[tuple[str, str], ...], config_name: str
) -> Mapping[str, Any]:
    declared: dict[str, Any] = {group: read_option(folders, group, option) for group, option in choices}
    _merge(declared, read_option(folders, "", config_name))
    return dict(flat("", declared))


def read_option(folders: Sequence[Path], group: str, option: str) -> dict[str, Any]:
    """Return a YAML file on top of those that its defaults list names in the same group.

    The files are parsed plainly: OmegaConf's own objects take five times as long to make.

    Args:
        folders: of configurations; the first one that has the file counts.
        group: path of its folder in them.
        option: its name, without `.yaml`.
    """
    file = next((file for one in folders if (file := one / group / f"{option}.yaml").is_file()), None)
    written = dict(read_mapping(file)) if file is not None else {}
    merged: dict[str, Any] = {}
    for base in written.pop("defaults", None) or []:
        if isinstance(base, str) and base not in ("_self_", option):
            _merge(merged, read_option(folders, group, base))
    _merge(merged, written)
    return merged


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for name, value in above.items():
        if isinstance(value, dict):  # which belongs to the cache of files
            inner = below[name] = dict(found) if isinstance(found := below.get(name), dict) else {}
            _merge(inner, value)
        else:
            below[name] = value


def place_in_file(key: str, config: DictConfig, line: str) -> str:
    """Return where a key's value stands, as messages begin, if a file is to blame for it.

    That is the file of a preset or of a folder beside the main one, and for names that nothing reads any
    file; never one whose key the command line sets.

    Args:
        key: dotted.
        config: composed, with Hydra's own node.
        line: what is said of the key.
    """
    if key in command_request(config).keys.difference(PRESETS) or key.startswith(("+", "~")):
        return ""
    wanted = key.removesuffix("._target_") if "_target_:" in line else key
    choices = {f"{group}/{option}" for group, option in config.hydra.runtime.choices.items()}
    is_at_top = wanted in map(str, config)
    last_first = list(reversed(yaml_files.loaded))
    for path in sorted(last_first, key=lambda path: path not in choices):
        is_preset = path.partition("/")[0] in PRESETS or not config_files.is_main(path)
        is_to_blame = is_preset or NOTHING_READS in line
        if is_to_blame and (where := config_files.place_of(path, wanted, is_at_top)):
            return where
    return ""


def find_problems(
    config: DictConfig, leaves: Mapping[str, Any], declared: Mapping[str, Any]
) -> Iterator[str]:
    """Yield a line for each key that nothing reads, and for each missing argument.

    Args:
        config: composed, with Hydra's own node.
        leaves: all values as they are written, by dotted key.
        declared: those of the YAML files of the chosen options.
    """
    yield from _unknown_in_files(config, leaves, declared)
    yield from _unknown_additions(config, leaves, declared)
    for group in OBJECTS:
        yield from _of_object(group, config[group], given=FACTORIES.get(group, 0))
    for group in DICTS:
        for name in config[group]:
            node = raw_child(config[group], name)
            if isinstance(node, DictConfig) and not OmegaConf.is_interpolation(config[group], name):
                yield from _of_object(f"{group}.{name}", node, given=0)


def _unknown_in_files(
    config: DictConfig, leaves: Mapping[str, Any], declared: Mapping[str, Any]
) -> Iterator[str]:
    """Yield keys of files that nothing reads, at the top and in `paths`: those of others are arguments.

    A key that another one refers to is read. So is one that the primary configuration declares, unless its
    name is nearly that of a key that a run reads.
    """
    declared_here = {key.partition(".")[0] for key in declared}.difference(PRESETS)
    declared_here |= {key for key in declared if key.startswith("paths.")}
    for name in (*map(str, config), *(key for key in leaves if key.startswith("paths."))):
        own = name in declared_here and not get_close_matches(name, KNOWN, n=1, cutoff=TYPO_LIKENESS)
        if own or name in (*KNOWN, *KEYS) or _is_referred_to(name, config, leaves):
            continue
        if place_in_file(name, config, NOTHING_READS):  # an earlier run's own configuration is not judged
            yield f"{name}: {NOTHING_READS}; {_remedy(name, config, declared)}"


def _is_referred_to(name: str, config: DictConfig, leaves: Mapping[str, Any]) -> bool:
    """Return whether an expression refers to a key, as `${name}`, `${..name}` or `${oc.select:name}`, or a
    file has an alias of its value.
    """
    hydra = flat("hydra", OmegaConf.to_container(config.hydra, resolve=False))  # folders are named there
    written = "\n".join(str(raw) for raw in (*leaves.values(), *dict(hydra).values()) if "${" in str(raw))
    last = name.rpartition(".")[2]
    pattern = rf"\$\{{(oc\.select:)?\s*(\.*{re.escape(name)}|\.+{re.escape(last)})(?!\w)"
    return re.search(pattern, written) is not None or any(
        config_files.has_alias(file, name) for file in yaml_files.loaded.values()
    )


def _remedy(name: str, config: DictConfig, declared: Mapping[str, Any]) -> str:
    group, _, key = name.partition(".")
    if name == "_target_":
        return "write it in the block of a group, as in model:"
    if name in PRESETS:
        return "begin its file with # @package _global_"
    if group == "paths":
        return did_you_mean(key, _paths(declared), "paths.")
    if key and group in config:
        return f"write {key}: … in a block {group}:"
    return did_you_mean(name, ["_global_"] if name.startswith("_") else KNOWN)


def _paths(declared: Mapping[str, Any]) -> list[str]:
    return [name.removeprefix("paths.") for name in declared if name.startswith("paths.")]


def _unknown_additions(
    config: DictConfig, leaves: Mapping[str, Any], declared: Mapping[str, Any]
) -> Iterator[str]:
    """Yield keys that the command line adds outside of objects, unless another key refers to them."""
    roots = {key.partition(".")[0] for key in declared} | set(GROUPS)
    written = " ".join(str(raw) for raw in leaves.values() if "${" in str(raw))
    for text in overrides_of(config):
        if not text.startswith("+"):
            continue
        key = text.lstrip("+").partition("=")[0].partition("@")[0]
        root = key.partition(".")[0]
        if root == "hydra":
            known, part = list(HydraConf.__dataclass_fields__), f"{key}.".split(".")[1]
            if part and part not in known:
                yield f"{text}: nothing reads {key}; {did_you_mean(part, known, 'hydra.')}"
        elif "/" in key or key in declared or f"${{{key}" in written or f"${{{root}}}" in written:
            continue
        elif root not in roots:
            yield f"{text}: nothing reads {key}; {did_you_mean(root, sorted(roots))}"
        elif root == "paths":
            hint = did_you_mean(key.removeprefix("paths."), _paths(declared), "paths.")
            yield f"{text}: nothing reads {key}; {hint}"


def _of_object(place: str, node: DictConfig, *, given: int) -> Iterator[str]:
    """Yield the keys of an object that its constructor does not take, and those that it lacks.

    Args:
        place: key of the object.
        node: its configuration.
        given: arguments that the run gives by position.
    """
    name = raw_child(node, "_target_")
    if not isinstance(name, str) or "${" in name:
        return
    keys = [str(key) for key in node if not str(key).startswith("_")]
    for key in keys:
        if remedy := SET_BY_THE_RUN.get(f"{place}.{key}"):
            yield f"{place}.{key}: is not read; {remedy}"
    found = signature_of(name)
    if isinstance(found, Missing):
        hint = did_you_mean(found.name, found.known)
        yield f"{place}._target_={name}: no {found.name} in {found.where}; {hint}"
    if not isinstance(found, Signature):
        return
    required = found.required(by_name=False)
    short = name.rpartition(".")[2]
    if not found.anything:
        more_keys = PARAMETER_GROUP_KEYS if place == "optim" else ()
        known = [*(one for one in found.arguments if one not in required[:given]), *more_keys]
        unknown = [key for key in keys if key not in (*found.arguments, *more_keys)]
        strange = [key for key in unknown if f"{place}.{key}" not in SET_BY_THE_RUN]
        typos = [key for key in strange if nearest_names(key, known)]
        others = [key for key in strange if key not in typos]  # arguments of another class: one mistake
        for first, *more in [*([key] for key in typos), *([others] if others else [])]:
            also = "".join(f", nor {key}" for key in more)
            if known:
                reason, hint = f"{short} has no {first}{also}", did_you_mean(first, known, f"{place}.")
            else:
                reason, hint = f"{short} takes no options", "leave it out"
            yield f"{place}.{first}: nothing reads it, {reason}; {hint}"
    for key in (*required[given:], *found.required(by_name=True)):
        if key not in keys:
            yield f"{place}.{key}: not given, and {short} needs it; set {place}.{key}=…"
