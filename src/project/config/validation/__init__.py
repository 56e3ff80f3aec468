"""Checks of a composed configuration that need no torch: keys, values, combinations.

Each module checks one topic and yields a line for each problem: key, value, expected values and fix. The
annotations of constructors and the module `values` declare the allowed values. The module `network` runs a
trial batch through the network, after torch is imported.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from project.config import allowed_targets, hydra_security
from project.config.allowed_targets import REFERENCE
from project.config.parts import referenced_group
from project.config.validation import (
    data,
    declared_keys,
    image_folders,
    loggers,
    optimizer_combinations,
    own_task,
    paths,
    tables,
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
"""Matches the key at the start of a line."""


class InterpolationLoopError(OmegaConfBaseException):
    """Raised for a value that refers to itself."""


def find_problems(config: DictConfig) -> Iterator[str]:
    """Yield a line for each wrong key of a composed configuration.

    If several checks report a key, only the last line is yielded, because later checks are more specific.

    Args:
        config: composed configuration with Hydra's own node.

    Raises:
        DataError: the configuration is valid, but images are damaged or missing, or table
            cells do not fit.
    """
    lines: dict[str, str] = {}
    for line in _problems(config):
        lines[SUBJECT.match(line)[0]] = line  # type: ignore[index]
    if not lines:
        image_folders.refuse_damaged(config)
        tables.refuse_wrong_cells(config)
    for key in _causes(list(lines), config):
        yield place_in_file(key, config, lines[key]) + lines[key]


def _causes(keys: Sequence[str], config: DictConfig) -> list[str]:
    """Return the keys whose problem is not a consequence of another: no key that it refers to or contains."""
    if len(keys) < 2:
        return list(keys)
    references = {key: REFERRED_KEY.findall(str(value)) for key, value in _leaves(config)}
    causes = [
        key
        for key in keys
        if not any(other != key and other in references.get(key, ()) for other in keys)
        and not any(other.startswith(f"{key}.") for other in keys)
    ]
    if causes:
        return causes
    circle = next((key for key in keys if place_in_file(key, config, "")), keys[0])
    return [circle]


def _problems(config: DictConfig) -> Iterator[str]:
    """Yield a line for each problem, including consequences of other problems."""
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
    for key, written in leaves.items():
        if referenced_group(written):
            continue  # the values of the group are checked
        try:
            value = _value(key, leaves, config)
        except (OmegaConfBaseException, RecursionError) as error:
            if damage := _resolver_message(
                DataError, error
            ):  # the images decide whether these values are valid
                image_folders.refuse_damaged(config)
                raise DataError(damage) from error
            message = (
                "refers to itself; give a value" if isinstance(error, RecursionError) else one_line(error)
            )
            yield _resolver_message(InputError, error) or f"{key}: {message}"
            continue
        if problem := values.find_problem(key, value, declared, leaves):
            if isinstance(value, str) and "number" in problem and str(leaves[key]).startswith("${oc.env:"):
                read = f"{key}='${{oc.decode:{leaves[key]}}}'"
                problem += f"; an environment variable is a string; convert it with {read}"
            yield problem
        else:
            right[key] = value
    yield from wrong_groups(config, leaves, right)
    if wrong := list(wrong_kinds(right)):  # arguments of a class of the wrong kind need no check
        yield from wrong
        return
    yield from declared_keys.find_problems(config, leaves, declared)
    command = command_request(config)
    for topic in (data, optimizer_combinations, own_task, trainer, loggers, paths):
        yield from topic.find_problems(right, command)


def _leaves(config: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and uninterpolated values, except those of Hydra's own node."""
    for name in config:
        if name == "hydra":
            continue
        node = raw_child(config, name)
        written = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
        yield from flat(str(name), written)


def _value(key: str, leaves: Mapping[str, Any], config: DictConfig) -> Any:
    """Return the resolved value of a key; plain references are followed without OmegaConf, which is slow."""
    seen = set()
    while isinstance(raw := leaves[key], str) and (found := REFERENCE.fullmatch(raw)):
        if key in seen:
            raise InterpolationLoopError(f"{raw} refers to itself; give a value")
        seen.add(key)
        if found[1] not in leaves:
            break
        key = found[1]
    if "${" not in str(raw):
        return raw
    value = OmegaConf.select(config, key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _resolver_message(kind: type[InputError], error: Exception) -> str:
    """Return the message of an error of this class raised by one of our resolvers; otherwise empty."""
    return one_line(error).partition(f"{kind.__name__} raised while resolving interpolation: ")[2]
