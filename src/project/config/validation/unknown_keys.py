"""Keys that nothing reads, and keys that a constructor waits for in vain."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from hydra.conf import HydraConf
from omegaconf import DictConfig

from project.config.validation.command_request import overrides_of
from project.config.validation.groups import DICTS, FACTORIES, GROUPS, OBJECTS
from project.config.validation.signatures import Missing, Signature, signature_of
from project.runtime.text import did_you_mean

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
"""What a trainer takes, but from somewhere else."""


def find_problems(
    config: DictConfig, leaves: Mapping[str, Any], declared: Mapping[str, Any]
) -> Iterator[str]:
    """Yield keys that nothing reads, and arguments that are missing.

    Args:
        config: composed, with Hydra's own node.
        leaves: all values as they are written, by dotted key.
        declared: those of the YAML files.
    """
    yield from _unread_additions(config, leaves, declared)
    for group in OBJECTS:
        yield from _of_object(group, config[group], partial=group in FACTORIES)
    for group in DICTS:
        for name in config[group]:
            node = config[group]._get_node(name)
            if isinstance(node, DictConfig) and not node._is_interpolation():
                yield from _of_object(f"{group}.{name}", node, partial=False)


def _unread_additions(
    config: DictConfig, leaves: Mapping[str, Any], declared: Mapping[str, Any]
) -> Iterator[str]:
    """Keys that the command line adds outside of what is built, unless another key refers to them."""
    roots = {key.partition(".")[0] for key in declared} | set(GROUPS)
    written = " ".join(str(raw) for raw in leaves.values() if "${" in str(raw))
    for text in overrides_of(config):
        if not text.startswith("+"):
            continue
        key = text.lstrip("+").partition("=")[0].partition("@")[0]
        root = key.partition(".")[0]
        if root == "hydra":
            yield from _unknown_to_hydra(text, key)
        elif "/" in key or key in declared or f"${{{key}" in written or f"${{{root}}}" in written:
            continue
        elif root not in roots:
            yield f"{text}: nothing reads {key}; {did_you_mean(root, sorted(roots))}"
        elif root == "paths":
            known = [name.removeprefix("paths.") for name in declared if name.startswith("paths.")]
            yield f"{text}: nothing reads {key}; {did_you_mean(key.removeprefix('paths.'), known, 'paths.')}"


def _unknown_to_hydra(text: str, key: str) -> Iterator[str]:
    known = list(HydraConf.__dataclass_fields__)
    parts = key.split(".")
    if len(parts) > 1 and parts[1] not in known:
        yield f"{text}: nothing reads {key}; {did_you_mean(parts[1], known, 'hydra.')}"


def _of_object(place: str, node: DictConfig, *, partial: bool) -> Iterator[str]:
    target = node._get_node("_target_", validate_access=False)
    name = None if target is None else target._value()
    if not isinstance(name, str) or "${" in name:
        return
    keys = [str(key) for key in node if not str(key).startswith("_")]
    for key in keys:
        if remedy := SET_BY_THE_RUN.get(f"{place}.{key}"):
            yield f"{place}.{key}: is not read; {remedy}"
    found = signature_of(name)
    if isinstance(found, Missing):
        hint = did_you_mean(found.what, found.known)
        yield f"{place}._target_={name}: no {found.what} in {found.where}; {hint}"
    if not isinstance(found, Signature):
        return
    if not found.anything:
        known = found.names if not partial else [one for one in found.names if one not in found.required]
        strange = [key for key in keys if key not in found.names and f"{place}.{key}" not in SET_BY_THE_RUN]
        typos = [key for key in strange if get_close_matches(key, known)]
        others = [key for key in strange if key not in typos]  # which another class has: one mistake
        for first, *more in [*([key] for key in typos), *([others] if others else [])]:
            said = f"{place}.{first}: nothing reads it, {name.rpartition('.')[2]} has no {first}"
            said += "".join(f", nor {key}" for key in more)
            yield f"{said}; {did_you_mean(first, known, f'{place}.')}"
    required = found.required_keywords if partial else (*found.required, *found.required_keywords)
    for key in required:
        if key not in keys:
            yield f"{place}.{key}: not given, and {name.rpartition('.')[2]} needs it; set {place}.{key}=…"
