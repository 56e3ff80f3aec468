"""What the YAML files of the chosen options say: which keys there are, and of what type each is."""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig
from omegaconf import _utils as omegaconf_utils


def declared_values(config: DictConfig) -> Mapping[str, Any]:
    """The values in the YAML files of the chosen options, by dotted key.

    Args:
        config: composed by Hydra, with its own node.
    """
    sources = [source.path for source in config.hydra.runtime.config_sources if source.provider == "main"]
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
    sources: tuple[str, ...], choices: tuple[tuple[str, str], ...], config_name: str
) -> Mapping[str, Any]:
    declared: dict[str, Any] = {}
    for conf in map(Path, sources):
        for group, option in choices:
            declared[group] = _load(conf / group, option)
        _merge(declared, _load(conf, config_name))
    return dict(flat("", declared))


def _load(folder: Path, option: str) -> dict[str, Any]:
    """A YAML file on top of those that its defaults list names in the same folder.

    Plainly parsed: OmegaConf's own objects take five times as long to make, and nobody needs them here.
    """
    file = folder / f"{option}.yaml"
    written: Any = None
    if file.exists():
        written = yaml.load(file.read_bytes(), Loader=omegaconf_utils.get_yaml_loader())  # noqa: S506 (a safe one)
    if not isinstance(written, dict):
        return {}
    whole: dict[str, Any] = {}
    for base in written.pop("defaults", None) or []:
        if isinstance(base, str) and base != "_self_":
            _merge(whole, _load(folder, base))
    _merge(whole, written)
    return whole


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for name, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(name), dict):
            _merge(below[name], value)
        else:
            below[name] = value
