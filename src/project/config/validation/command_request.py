"""Check the arguments of the command line before Hydra reads them, and summarize the command."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from project.config.hydra_patches import BASIC_LAUNCHER, parse_command_line
from project.config.validation.groups import GROUPS, KEYS, PRESETS
from project.errors import InputError

OTHER_DEFAULTS = ("--config-path", "-cp", "--config-name", "-cn")
"""Flags that select another primary configuration, with its own defaults list."""
LOCAL_LAUNCHERS = (
    "hydra_plugins.project_sweeps.LocalLauncher",
    BASIC_LAUNCHER,
)


class CommandRequest(NamedTuple):
    """Facts about a command that the checks need.

    Args:
        keys: keys that the command line sets.
        here: true if the run is on this machine.
        sweeps: true if the command starts a sweep.
        data: selected option of the group `data`.
    """

    keys: frozenset[str]
    here: bool
    sweeps: bool
    data: str


def overrides_of(hydra: DictConfig) -> list[str]:
    """Return the overrides as typed, including those of Hydra's own node, before interpolation."""
    typed: list[str] = []
    for part in (hydra.overrides.task, hydra.overrides.hydra):
        written = OmegaConf.to_container(part, resolve=False) if part is not None else []
        assert isinstance(written, list)
        typed += map(str, written)
    return typed


def command_request(config: DictConfig) -> CommandRequest:
    """Return the facts about the command that composed a configuration.

    Args:
        config: composed configuration with Hydra's own node.
    """
    return CommandRequest(
        frozenset(text.partition("=")[0].lstrip("+~") for text in overrides_of(config.hydra)),
        config.hydra.launcher.get("_target_") in LOCAL_LAUNCHERS,
        config.hydra.mode == RunMode.MULTIRUN,
        str(config.hydra.runtime.choices.get("data")),
    )


def refuse_wrong_arguments(arguments: Sequence[str]) -> None:
    """Refuse arguments that Hydra would ignore, or report in many lines.

    Raises:
        InputError: a flag is unknown, an override has no key, or a key is given twice; one line each.
    """
    known, unknown = parse_command_line(arguments)
    problems = [
        f"{text}: no such flag; --hydra-help lists them, and keys are given as key=value"
        for text in unknown
        if text.startswith("-")
    ]
    overrides = [*known.overrides, *(text for text in unknown if not text.startswith("-"))]
    needed = not any(text.startswith("resume=") for text in overrides)  # a resumed sweep contains a copy
    if needed and known.config_dir is not None and not Path(known.config_dir).is_dir():
        problems.append(
            f"--config-dir={known.config_dir}: no such folder; name a folder of configuration files"
        )
    if problems := [*problems, *repeated(overrides), *_removed_path_keys(overrides), *_emptied(overrides)]:
        raise InputError("\n".join(problems))


def last_of_each(arguments: Sequence[str], defaults: Path) -> tuple[list[str], list[str]]:
    """Keep the last override of each key, as in `train.py optim.lr=0.1 "$@"`.

    A `+` before a group of the defaults list is dropped: `+experiment=x` becomes `experiment=x`. For other
    keys, the last override gets the `+` of the first one. `experiment=null` is dropped.

    Args:
        arguments: arguments of the command line.
        defaults: file of the primary configuration.

    Returns:
        The arguments for Hydra, and a line for each key with several different values.
    """
    groups = _groups_of(defaults) if any(text.startswith("+") for text in arguments) else frozenset()
    if any(text.startswith(OTHER_DEFAULTS) for text in arguments):
        groups = frozenset()
    given: dict[str, list[str]] = {}
    for text in arguments:
        if not text.startswith(("-", "~")) and "=" in text:
            given.setdefault(_key(text), []).append(text)
    deleted = {_key(text) for text in arguments if text.startswith("~")}
    kept, lines = list(arguments), []
    for key, texts in given.items():
        if not key or key in deleted:  # `refuse_wrong_arguments` reports these
            continue
        name, _, value = texts[-1].partition("=")
        prefix = "++" if any(text.startswith("++") for text in texts) else "+" * texts[0].startswith("+")
        last = f"{'' if key in groups else prefix}{name.lstrip('+')}={value}"
        place = len(kept) - 1 - kept[::-1].index(texts[-1])
        kept[place] = last
        kept = [text for number, text in enumerate(kept) if number == place or text not in texts]
        if others := dict.fromkeys(text for text in texts if text.lstrip("+") != texts[-1].lstrip("+")):
            lines.append(f"{last}: overrides {' or '.join(others)}")
    none = {f"{preset}=null" for preset in PRESETS}  # invalid in Hydra if the default is null
    return [text for text in kept if text not in none], lines


def repeated(overrides: Sequence[str]) -> Iterator[str]:
    """Yield a line for each key that is given more than once, and for each override without a key."""
    given: dict[str, list[str]] = {}
    for text in overrides:
        if not (key := _key(text)):
            yield f"{text}: not an override; write key=value"
            continue
        given.setdefault(key, []).append(text)
    for key, texts in given.items():
        if len(set(texts)) > 1:
            times = "twice" if len(texts) == 2 else f"{len(texts)} times"
            yield f"{key}: given {times}, as {' and '.join(texts)}; keep one"


def _groups_of(defaults: Path) -> frozenset[str]:
    """Return the groups in the defaults list of a configuration."""
    entries: Any = OmegaConf.to_container(OmegaConf.load(defaults))
    entries = entries.get("defaults", ())
    return frozenset(str(name) for entry in entries if isinstance(entry, dict) for name in entry)


def _key(text: str) -> str:
    return text.partition("=")[0].lstrip("+~").strip().removesuffix("@_global_")


def _removed_path_keys(overrides: Sequence[str]) -> Iterator[str]:
    """Yield a line for each removed key that the name of the run folder needs, before Hydra resolves it."""
    for key, remedy in (("paths", GROUPS["paths"]), ("paths.outputs", KEYS["paths.outputs"])):
        if f"~{key}" in overrides:
            yield f"~{key}: a run needs it; {remedy}"


def _emptied(overrides: Sequence[str]) -> Iterator[str]:
    """Yield a line for each group that is set to `{}`, which has no effect in Hydra."""
    for text in overrides:
        key, _, value = text.partition("=")
        if value == "{}" and key in GROUPS:
            yield f"{text}: no effect, because existing keys stay; {GROUPS[key]}"
