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

from project.config import config_files, metrics
from project.config.parts import PARAMETER_GROUP_KEYS, present
from project.config.signatures import Argument, Signature, signature_of
from project.config.source_index import Missing
from project.config.validation.command_request import command_request, overrides_of
from project.config.validation.groups import (
    DICTS,
    FACTORIES,
    GROUPS,
    KEYS,
    OPTIONAL,
    PRESETS,
)
from project.runtime import yaml_files
from project.runtime.text import did_you_mean, nearest_names
from project.runtime.yaml_files import config_folders, raw_child, read_mapping

ANY_ARGUMENT = Argument("", (), required=False, by_name=True)
NOTHING_READS = "nothing reads it"
KNOWN = ("hydra", *dict.fromkeys((*GROUPS, *(key.partition(".")[0] for key in KEYS), *OPTIONAL)))
"""Top-level keys that a run or a sweep reads."""
TYPO_SIMILARITY = 0.8
"""Similarity of two names (0 to 1) from which one counts as a typo of the other."""
SET_ELSEWHERE: Mapping[str, str] = {
    "trainer.callbacks": "set callbacks in the group callbacks",
    "trainer.logger": "set loggers in the group logger; logger=none logs nothing",
    "trainer.default_root_dir": "the run folder follows paths.outputs and name",
    "trainer.plugins": "each run sets its own",
    "trainer.enable_checkpointing": (
        "callbacks.best and callbacks.last write checkpoints; remove them with "
        "'~callbacks.best' '~callbacks.last'"
    ),
    "trainer.enable_progress_bar": "callbacks.progress shows progress; remove it with '~callbacks.progress'",
}
"""Arguments of the trainer that are not read, with the keys to set instead."""


def declared_values(config: DictConfig, hydra: DictConfig | None = None) -> Mapping[str, Any]:
    """Return the values in the YAML files of the chosen options, by dotted key.

    Args:
        config: composed configuration.
        hydra: Hydra's own node [that of `config`].
    """
    hydra = config.hydra if hydra is None else hydra
    assert hydra is not None
    sources = config_folders(hydra.runtime.config_sources)
    choices = [(group, option) for group, option in chosen_options(hydra) if group in config]
    return _declared_by(tuple(sources), tuple(choices), hydra.job.config_name)


def chosen_options(hydra: DictConfig) -> Iterator[tuple[str, str]]:
    """Yield each group with an option of it; groups of objects by name may have several."""
    for group, chosen in hydra.runtime.choices.items():
        for option in [chosen] if isinstance(chosen, str) else chosen or ():
            yield str(group), str(option)


def flat(key: str, written: Any) -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and values below `key`; a list is one value."""
    if not isinstance(written, dict) or not written:
        yield key, written
        return
    for name, child in written.items():
        yield from flat(f"{key}.{name}" if key else str(name), child)


@cache  # the jobs of a sweep share a few combinations of options
def _declared_by(
    folders: tuple[Path, ...], choices: tuple[tuple[str, str], ...], config_name: str
) -> Mapping[str, Any]:
    declared: dict[str, Any] = {}
    for group, option in choices:
        _merge(declared, {group: read_option(folders, group, option)})
    _merge(declared, read_option(folders, "", config_name))
    return dict(flat("", declared))


def read_option(folders: Sequence[Path], group: str, option: str) -> dict[str, Any]:
    """Return the values of a YAML file, merged over the files of its group in its defaults list.

    Values are plain dicts, because building OmegaConf objects takes five times as long.

    Args:
        folders: configuration folders; the first folder that contains the file is used.
        group: path of the group below a folder.
        option: file name without `.yaml`.
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
        if isinstance(value, dict):  # copied, because the cache of files holds it
            inner = below[name] = dict(found) if isinstance(found := below.get(name), dict) else {}
            _merge(inner, value)
        else:
            below[name] = value


def place_in_file(key: str, config: DictConfig, line: str) -> str:
    """Return the file and line that set a key, as the start of a message; empty if no file is the cause.

    A file is the cause if it is a preset or belongs to a folder other than the main one. For a key that
    nothing reads, any file is. A key on the command line has no file.

    Args:
        key: dotted key.
        config: composed configuration with Hydra's own node.
        line: message about the key.
    """
    if key in command_request(config).keys.difference(PRESETS) or key.startswith(("+", "~")):
        return ""
    wanted = key.removesuffix("._target_") if "_target_:" in line else key
    choices = {f"{group}/{option}" for group, option in chosen_options(config.hydra)}
    is_at_top = wanted in map(str, config)
    last_first = list(reversed(yaml_files.loaded_files))
    for path in sorted(last_first, key=lambda path: path not in choices):
        is_preset = path.partition("/")[0] in PRESETS or not config_files.is_main(path)
        is_cause = is_preset or NOTHING_READS in line
        if is_cause and (where := config_files.location_in(path, wanted, is_at_top)):
            return where
    return ""


def find_problems(
    config: DictConfig, leaves: Mapping[str, Any], declared: Mapping[str, Any]
) -> Iterator[str]:
    """Yield a line for each key that nothing reads, and for each missing argument.

    Args:
        config: composed configuration with Hydra's own node.
        leaves: all values before interpolation, by dotted key.
        declared: values in the YAML files of the chosen options, by dotted key.
    """
    yield from _unknown_in_files(config, leaves, declared)
    yield from _unknown_additions(config, leaves, declared)
    for group in present(config):
        yield from _of_object(group, config[group], given=FACTORIES.get(group, 0))
    for group in (group for group in DICTS if group in config):
        for name in config[group]:
            node = raw_child(config[group], name)
            if isinstance(node, DictConfig) and not OmegaConf.is_interpolation(config[group], name):
                filled = metrics.filled_arguments(config) if group == "metrics" else ()
                yield from _of_object(f"{group}.{name}", node, given=0, filled=filled)


def _unknown_in_files(
    config: DictConfig, leaves: Mapping[str, Any], declared: Mapping[str, Any]
) -> Iterator[str]:
    """Yield a line for each unread key at the top and in `paths`; keys of other groups are arguments.

    A key is read if another key refers to it. A key that the primary configuration declares also counts as
    read, unless its name looks like a typo of a known key.
    """
    declared_here = {key.partition(".")[0] for key in declared}.difference(PRESETS)
    declared_here |= {key for key in declared if key.startswith("paths.")}
    for name in (*map(str, config), *(key for key in leaves if key.startswith("paths."))):
        own = name in declared_here and not get_close_matches(name, KNOWN, n=1, cutoff=TYPO_SIMILARITY)
        if own or name in (*KNOWN, *KEYS) or _is_referred_to(name, config, leaves):
            continue
        if place_in_file(name, config, NOTHING_READS):  # keys of a resumed run come from no file
            yield f"{name}: {NOTHING_READS}; {_remedy(name, config, declared)}"


def _is_referred_to(name: str, config: DictConfig, leaves: Mapping[str, Any]) -> bool:
    """Return True if an interpolation refers to a key, or a file contains a YAML alias of its value.

    Interpolations are `${name}`, `${..name}` and `${oc.select:name}`.
    """
    hydra = flat("hydra", OmegaConf.to_container(config.hydra, resolve=False))  # contains the folder names
    written = "\n".join(str(raw) for raw in (*leaves.values(), *dict(hydra).values()) if "${" in str(raw))
    last = name.rpartition(".")[2]
    pattern = rf"\$\{{(oc\.select:)?\s*(\.*{re.escape(name)}|\.+{re.escape(last)})(?!\w)"
    return re.search(pattern, written) is not None or any(
        config_files.has_alias(file, name) for file in yaml_files.loaded_files.values()
    )


def _remedy(name: str, config: DictConfig, declared: Mapping[str, Any]) -> str:
    group, _, key = name.partition(".")
    if name == "_target_":
        return "write it below a group, as in model:"
    if name in PRESETS:
        return "start its file with # @package _global_"
    if group == "paths":
        return did_you_mean(key, _paths(declared), "paths.")
    if key and group in config:
        return f"write {key}: … below {group}:"
    return did_you_mean(name, ["_global_"] if name.startswith("_") else KNOWN)


def _paths(declared: Mapping[str, Any]) -> list[str]:
    return [name.removeprefix("paths.") for name in declared if name.startswith("paths.")]


def _unknown_additions(
    config: DictConfig, leaves: Mapping[str, Any], declared: Mapping[str, Any]
) -> Iterator[str]:
    """Yield a line for each key that `+` adds outside of objects and that no other key refers to."""
    roots = {key.partition(".")[0] for key in declared} | set(GROUPS)
    written = " ".join(str(raw) for raw in leaves.values() if "${" in str(raw))
    for text in overrides_of(config.hydra):
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


def _of_object(place: str, node: DictConfig, *, given: int, filled: Sequence[str] = ()) -> Iterator[str]:
    """Yield a line for each key that a constructor does not take, and for each required key that is missing.

    Args:
        place: dotted key of the object.
        node: configuration of the object.
        given: number of arguments that the run passes by position.
        filled: arguments that the run fills in.
    """
    name = raw_child(node, "_target_")
    if not isinstance(name, str) or "${" in name:
        return
    keys = [str(key) for key in node if not str(key).startswith("_")]
    for key in keys:
        if remedy := SET_ELSEWHERE.get(f"{place}.{key}"):
            yield f"{place}.{key}: is not read; {remedy}"
    found = signature_of(name)
    if isinstance(found, Missing):
        hint = did_you_mean(found.name, found.known)
        yield f"{place}._target_={name}: no {found.name} in {found.where}; {hint}"
    if not isinstance(found, Signature):
        return
    if found.anything and name.startswith("torchmetrics."):  # others are for the base class
        found = Signature({**dict.fromkeys(metrics.OPTIONS, ANY_ARGUMENT), **found.arguments}, anything=False)
    required = found.required(by_name=False)
    short = name.rpartition(".")[2]
    if not found.anything:
        more_keys = PARAMETER_GROUP_KEYS if place == "optim" else ()
        known = [*(one for one in found.arguments if one not in required[:given]), *more_keys]
        unknown = [key for key in keys if key not in (*found.arguments, *more_keys)]
        strange = [key for key in unknown if f"{place}.{key}" not in SET_ELSEWHERE]
        typos = [key for key in strange if nearest_names(key, known)]
        others = [key for key in strange if key not in typos]  # arguments of another class: one line for all
        for first, *more in [*([key] for key in typos), *([others] if others else [])]:
            also = "".join(f", nor {key}" for key in more)
            if known:
                reason, hint = f"{short} has no {first}{also}", did_you_mean(first, known, f"{place}.")
            else:
                reason, hint = f"{short} takes no options", "leave it out"
            yield f"{place}.{first}: nothing reads it, {reason}; {hint}"
    for key in (*required[given:], *found.required(by_name=True)):
        if key not in (*keys, *filled):
            yield f"{place}.{key}: missing ({short} requires it); set {place}.{key}=…"
