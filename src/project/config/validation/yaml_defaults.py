"""What the YAML files of the chosen options say: which keys there are, and of what type each is."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from project.runtime.yaml_files import config_folders, read_mapping


def declared_values(config: DictConfig) -> Mapping[str, Any]:
    """The values in the YAML files of the chosen options, by dotted key.

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
    """Dotted keys of all values in `written`, which stands at `key`. A list is one, an empty dict too."""
    if not isinstance(written, dict) or not written:
        yield key, written
        return
    for name, child in written.items():
        yield from flat(f"{key}.{name}" if key else str(name), child)


@cache  # the jobs of a sweep make the same few choices
def _declared_by(
    folders: tuple[Path, ...], choices: tuple[tuple[str, str], ...], config_name: str
) -> Mapping[str, Any]:
    declared: dict[str, Any] = {}
    for group, option in choices:
        declared[group] = read_option(folders, group, option)
    _merge(declared, read_option(folders, "", config_name))
    return dict(flat("", declared))


def read_option(folders: Sequence[Path], group: str, option: str) -> dict[str, Any]:
    """A YAML file on top of those that its defaults list names in the same group.

    Plainly parsed: OmegaConf's own objects take five times as long to make, and nobody needs them here.

    Args:
        folders: of configurations; the first one that has the file counts.
        group: path of its folder in them.
        option: its name, without `.yaml`.
    """
    file = next((file for one in folders if (file := one / group / f"{option}.yaml").is_file()), None)
    written = dict(read_mapping(file)) if file is not None else {}
    whole: dict[str, Any] = {}
    for base in written.pop("defaults", None) or []:
        if isinstance(base, str) and base not in ("_self_", option):
            _merge(whole, read_option(folders, group, base))
    _merge(whole, written)
    return whole


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for name, value in above.items():
        if isinstance(value, dict):  # which belongs to the cache of files
            inner = below[name] = dict(found) if isinstance(found := below.get(name), dict) else {}
            _merge(inner, value)
        else:
            below[name] = value
