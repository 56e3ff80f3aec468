"""Another data set for a trained network, or its own from elsewhere: what the command line may change."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from project.config.resume import change_config
from project.config.suggestions import options
from project.config.validation.values import find_problem
from project.config.validation.yaml_defaults import read_option
from project.datamodules.storage.class_folders import ALL
from project.errors import InputError
from project.runtime.text import did_you_mean

CONF = Path(__file__).resolve().parents[3] / "conf"
IMAGE_FOLDER = "project.datamodules.image_folder.ImageFolder"
CUTS = ("split_seed", "test_size", "val_size", "folds", "fold")
"""How a data set's own images are split: otherwise cut, those that are tested were trained on."""


def name_classes(data: DictConfig, overrides: Sequence[str], names: Sequence[str]) -> None:
    """Have a folder of other images tested as a whole, with the labels that the network knows.

    Args:
        data: the data set's configuration, changed in place.
        overrides: by which it was given.
        names: of the network's classes.
    """
    given = {word.partition("=")[0] for word in overrides}
    if not {"data", "data.path"} & given or data._target_ != IMAGE_FOLDER:
        return
    with open_dict(data):
        if "data.classes" not in given:
            data.classes, data.num_classes = list(names), len(names)
        if "data.test_size" not in given:
            data.test_size = ALL


def override_data(
    config: DictConfig,
    overrides: Sequence[str],
    fixed: dict[str, Any],
    shape: tuple[int, int, int],
    sources: Sequence[Path] = (),
) -> None:
    """Change the data set in a run's composed configuration as the command line says.

    Args:
        config: changed in place.
        overrides: `data=cifar10`, `data.path=photos`, `paths.data=sets`.
        fixed: of the data set, what stays as the network was trained with it, unless it is given.
        shape: (C, H, W) of the images that the network takes.
        sources: folders of configurations that the run was composed from, beside the project's.

    Raises:
        InputError: there is no such data set or key, or the run's own images would be split otherwise.
    """
    given = {word.partition("=")[0] for word in overrides}
    trained = _plain(config.data)
    with open_dict(config):
        for word in overrides:
            key, _, value = word.partition("=")
            if key != "data":
                continue
            folders = [*sources, CONF]
            known = dict.fromkeys(name for folder in folders for name in options(folder, "data"))
            if value not in known:
                raise InputError(f"{word}: no such data set; {did_you_mean(value, known)}")
            config.data = read_option(folders, "data", value)
        for key, value in fixed.items():
            # Not `key in config.data`, which would ask for the folder before it is given.
            if key in list(config.data) and f"data.{key}" not in given and key != "num_classes":
                config.data[key] = value
        if {"data", "data.path"} & given and "resize" in config.data and config.data.resize is None:
            config.data.resize = list(shape[1:])
    declared = {f"data.{key}": value for key, value in _plain(config.data).items()}
    for word in overrides:
        if not word.startswith("data="):
            change_config(config, word, CONF)
    for key in sorted(given & declared.keys()):
        if problem := find_problem(key, _plain(config.data)[key.removeprefix("data.")], declared):
            raise InputError(problem)
    if {"data", "data.path"} & given:
        return
    changed = _plain(config.data)
    for cut in CUTS:
        now, own = changed.get(cut), trained.get(cut)
        if f"data.{cut}" in given and now != own:
            raise InputError(
                f"data.{cut}={as_word(now)}: the run had {as_word(own)}; cut otherwise, images that it "
                "trained on would be tested: leave it out, or give other data (data=… or data.path=…)"
            )


def _plain(group: DictConfig) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(group)
    return dict(found)


def as_word(value: Any) -> str:
    """A value as it is written on the command line."""
    return "null" if value is None else str(value)
