"""What can be known to be wrong with a configuration without torch: keys, types, ranges, words, combinations.

Each module looks at one subject and yields what is wrong, a line each, that names the key, its value, what is
allowed and the remedy. Where a class or data set is not ours, nothing is said about what only it can know.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from project.config import allowed_targets, hydra_security
from project.config.validation import (
    config_files,
    data,
    image_folders,
    monitors,
    networks,
    optimization,
    paths,
    trainer,
    unknown_keys,
    values,
)
from project.config.validation.command_request import asked
from project.config.validation.familiar import is_judged, place_of
from project.config.validation.groups import removed_groups, removed_keys, wrong_groups
from project.config.validation.kinds import wrong_kinds
from project.config.validation.yaml_defaults import declared_values, flat
from project.errors import DataError, InputError, one_line
from project.runtime import secrets


def find_problems(config: DictConfig) -> Iterator[str]:
    """Yield what is wrong with a composed configuration: a line for each key that is wrong by itself.

    Of several checks of a key the last one knows most.

    Args:
        config: with Hydra's own node.

    Raises:
        DataError: nothing is but images are damaged or missing.
    """
    told: dict[str, str] = {}
    for line in _problems(config):
        told[SUBJECT.match(line)[0]] = line  # type: ignore[index]
    if not told:
        image_folders.refuse_damaged(config)
    for key in _causes(list(told), config):
        yield config_files.place_of(key, config, told[key]) + told[key]


def _causes(keys: Sequence[str], config: DictConfig) -> list[str]:
    """Of keys with problems, those that no other one explains: neither one referred to, nor one within."""
    if len(keys) < 2:
        return list(keys)
    written = {key: REFERENCE.findall(str(value)) for key, value in _leaves(config)}
    causes = [
        key
        for key in keys
        if not any(other != key and other in written.get(key, ()) for other in keys)
        and not any(other.startswith(f"{key}.") for other in keys)
    ]
    if causes:
        return causes
    circle = next((key for key in keys if config_files.place_of(key, config, "")), keys[0])
    return [circle]


def _problems(config: DictConfig) -> Iterator[str]:
    """Yield what is wrong, for consequences of other mistakes too."""
    yield from (*allowed_targets.find_refusals(config), *hydra_security.find_refusals(config))
    yield from secrets.find_missing_secrets(config)
    if removed := list(removed_groups(config)):
        yield from removed
        return
    leaves = dict(sorted(_leaves(config)))
    if removed := list(removed_keys(leaves)):
        yield from removed
        return
    missing = [key for key, raw in leaves.items() if raw == "???"]
    if missing:
        yield from (f"{key}: not given; set {key}=…" for key in missing)
        return
    declared = declared_values(config)
    right: dict[str, Any] = {}
    for key in leaves:
        try:
            value = _value(key, leaves, config)
        except (OmegaConfBaseException, RecursionError) as error:
            if damage := _told_by(DataError, error):  # it decides about values that could be checked
                image_folders.refuse_damaged(config)
                raise DataError(damage) from error
            yield _reason(key, error)
            continue
        judged = is_judged(key, leaves)
        if not judged and _is_swapped(key, leaves, declared):
            right[key] = value  # the YAML file speaks of another class
        elif problem := values.find_problem(key, value, declared, judged=judged):
            if ": a word, but" in problem and str(leaves[key]).startswith("${oc.env:"):
                read = f"{key}='${{oc.decode:{leaves[key]}}}'"
                problem += f"; what a variable holds is a word until it is read: {read}"
            yield problem
        else:
            right[key] = value
    yield from wrong_groups(config, leaves, right)
    if wrong := list(wrong_kinds(right)):  # what a class of another kind takes does not matter
        yield from wrong
        return
    yield from config_files.unknown_keys(config, leaves, declared)
    yield from unknown_keys.find_problems(config, leaves, declared)
    command = asked(config)
    for look in (data, networks, optimization, trainer, monitors, paths):
        yield from look.find_problems(right, command)


def _is_swapped(key: str, leaves: Mapping[str, Any], declared: Mapping[str, Any]) -> bool:
    """Whether a key belongs to another class than its YAML file names."""
    target = f"{place_of(key)}._target_"
    return key != target and leaves.get(target) != declared.get(target)


def _leaves(config: DictConfig) -> Iterator[tuple[str, Any]]:
    """Dotted keys of all values but Hydra's own, with what is written there."""
    for name in config:
        node = config._get_node(name)
        if name == "hydra":
            continue
        assert isinstance(node, Node)
        written = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node._value()
        yield from flat(str(name), written)


SUBJECT = re.compile(r"[^:=]*")
"""The key that a line is about."""
REFERENCE = re.compile(r"\$\{([a-zA-Z_]\w*(?:\.\w+)*)\}")
"""An interpolation of another key: alone it is that key's value and nothing more."""


def _value(key: str, leaves: Mapping[str, Any], config: DictConfig) -> Any:
    """The resolved value of a key. OmegaConf parses each interpolation anew: it is spared simple ones."""
    seen = set()
    while isinstance(raw := leaves[key], str) and (found := REFERENCE.fullmatch(raw)):
        if key in seen:
            raise InterpolationLoopError(f"{raw} leads back to itself; give a value")
        seen.add(key)
        if found[1] not in leaves:
            break
        key = found[1]
    if "${" not in str(raw):
        return raw
    value = OmegaConf.select(config, key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


class InterpolationLoopError(OmegaConfBaseException):
    """A value that refers to itself."""


def _reason(key: str, error: Exception) -> str:
    message = "refers to itself; give a value" if isinstance(error, RecursionError) else one_line(error)
    return _told_by(InputError, error) or f"{key}: {message}"


def _told_by(kind: type[InputError], error: Exception) -> str:
    """What a resolver of ours said in an error of this class; empty if it was not one."""
    return one_line(error).partition(f"{kind.__name__} raised while resolving interpolation: ")[2]
