"""The YAML files of the chosen options: the values in them, and the places where they stand."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from project.config import config_files
from project.config.validation.command_request import command_request
from project.config.validation.groups import PRESETS
from project.runtime import yaml_files
from project.runtime.yaml_files import config_folders, read_mapping

NOTHING_READS = "nothing reads it"


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
