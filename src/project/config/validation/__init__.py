"""Checks of a composed configuration that need no torch: keys, values, combinations.

Each module checks one topic and yields a line for each problem: the key, its value, the expected values and
the remedy. Allowed values stand in the annotations of constructors and in `values`. `network` tries out the
network itself, after torch is imported.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from project.config import allowed_targets, hydra_security
from project.config.allowed_targets import REFERENCE
from project.config.validation import (
    data,
    declared_keys,
    image_folders,
    optimizer_combinations,
    paths,
    trainer,
    values,
)
from project.config.validation.command_request import command_request, overrides_of
from project.config.validation.declared_keys import declared_values, flat, place_in_file
from project.config.validation.groups import (
    removed_groups,
    removed_keys,
    unused_overrides,
    wrong_groups,
    wrong_kinds,
)
from project.errors import DataError, InputError, one_line
from project.runtime import secrets
from project.runtime.yaml_files import raw_child

REFERRED_KEY = re.compile(r"\$\{(?:oc\.select:)?([a-zA-Z_][\w.]*)[,}]")
"""A key that a value refers to."""
SUBJECT = re.compile(r"[^:=]*")
"""The key that a line is about."""


class InterpolationLoopError(OmegaConfBaseException):
    """A value refers to itself."""


def find_problems(config: DictConfig) -> Iterator[str]:
    """Yield a line for each wrong key of a composed configuration.

    Of several checks of a key the last one knows most.

    Args:
        config: with Hydra's own node.

    Raises:
        DataError: the configuration is right, but images are damaged or missing.
    """
    told: dict[str, str] = {}
    for line in _problems(config):
        told[SUBJECT.match(line)[0]] = line  # type: ignore[index]
    if not told:
        image_folders.refuse_damaged(config)
    for key in _causes(list(told), config):
        yield place_in_file(key, config, told[key]) + told[key]


def _causes(keys: Sequence[str], config: DictConfig) -> list[str]:
    """Return the keys that no other key with a problem explains, as one that it refers to or within it."""
    if len(keys) < 2:
        return list(keys)
    written = {key: REFERRED_KEY.findall(str(value)) for key, value in _leaves(config)}
    causes = [
        key
        for key in keys
        if not any(other != key and other in written.get(key, ()) for other in keys)
        and not any(other.startswith(f"{key}.") for other in keys)
    ]
    if causes:
        return causes
    circle = next((key for key in keys if place_in_file(key, config, "")), keys[0])
    return [circle]


def _problems(config: DictConfig) -> Iterator[str]:
    """Yield a line for each problem, for consequences of other mistakes too."""
    yield from (*allowed_targets.find_refusals(config), *hydra_security.find_refusals(config))
    yield from secrets.find_missing_secrets(config)
    leaves = dict(sorted(_leaves(config)))
    yield from unused_overrides(config, overrides_of(config.hydra))
    if removed := list(removed_groups(config)) or list(removed_keys(leaves)):
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
            message = (
                "refers to itself; give a value" if isinstance(error, RecursionError) else one_line(error)
            )
            yield _told_by(InputError, error) or f"{key}: {message}"
            continue
        if problem := values.find_problem(key, value, declared, leaves):
            if isinstance(value, str) and "number" in problem and str(leaves[key]).startswith("${oc.env:"):
                read = f"{key}='${{oc.decode:{leaves[key]}}}'"
                problem += f"; what a variable holds is a word until it is read: {read}"
            yield problem
        else:
            right[key] = value
    yield from wrong_groups(config, leaves, right)
    if wrong := list(wrong_kinds(right)):  # the arguments of a class of another kind do not matter
        yield from wrong
        return
    yield from declared_keys.find_problems(config, leaves, declared)
    command = command_request(config)
    for topic in (data, optimizer_combinations, trainer, paths):
        yield from topic.find_problems(right, command)


def _leaves(config: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of all values but Hydra's own, as written."""
    for name in config:
        if name == "hydra":
            continue
        node = raw_child(config, name)
        written = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
        yield from flat(str(name), written)


def _value(key: str, leaves: Mapping[str, Any], config: DictConfig) -> Any:
    """Return the resolved value of a key; simple references without OmegaConf, which parses each one anew."""
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


def _told_by(kind: type[InputError], error: Exception) -> str:
    """Return what a resolver of ours said in an error of this class; empty if it was not one."""
    return one_line(error).partition(f"{kind.__name__} raised while resolving interpolation: ")[2]
