"""Overrides of a trained run's data set: another data set, or its own in another place."""

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
OTHER_IMAGES = {"data", "data.path"}
"""Overrides by which the images are others than those of the run."""
SPLIT_KEYS = ("split_seed", "test_size", "val_size", "folds", "fold")


def use_known_classes(data: DictConfig, overrides: Sequence[str], names: Sequence[str]) -> None:
    """Give an `ImageFolder` of other images the network's classes, and test all of its images."""
    given = _keys(overrides)
    if not OTHER_IMAGES & given or data._target_ != IMAGE_FOLDER:
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
    """Apply data overrides to a run's composed configuration.

    Args:
        config: the configuration, changed in place.
        overrides: words such as `data=cifar10`, `data.path=photos`, `paths.data=sets`.
        fixed: values of the data set that stay as in training unless overridden.
        shape: shape (C, H, W) of the network's input.
        sources: configuration folders of the run, searched before the project's own.

    Raises:
        InputError: a data set or key is unknown, or an override would split the run's own images
            differently.
    """
    given = _keys(overrides)
    trained = _plain(config.data)
    with open_dict(config):
        for word in overrides:
            if word.startswith("data="):
                config.data = _read_data_option(word, [*sources, CONF])
        for key, value in fixed.items():
            # `key in config.data` would resolve the folder before it is overridden.
            if key in list(config.data) and f"data.{key}" not in given and key != "num_classes":
                config.data[key] = value
        if OTHER_IMAGES & given and "resize" in config.data and config.data.resize is None:
            config.data.resize = list(shape[1:])
    declared = {f"data.{key}": value for key, value in _plain(config.data).items()}
    for word in overrides:
        if not word.startswith("data="):
            change_config(config, word, CONF)
    changed = _plain(config.data)
    for key in sorted(given & declared.keys()):
        if problem := find_problem(key, changed[key.removeprefix("data.")], declared):
            raise InputError(problem)
    if OTHER_IMAGES & given:
        return
    for key in SPLIT_KEYS:
        now, before = changed.get(key), trained.get(key)
        if f"data.{key}" in given and now != before:
            raise InputError(
                f"data.{key}={as_word(now)}: the run had {as_word(before)}; with another split, images that "
                "it trained on would be tested: leave it out, or give other data (data=… or data.path=…)"
            )


def _read_data_option(word: str, folders: Sequence[Path]) -> Any:
    name = word.removeprefix("data=")
    known = dict.fromkeys(option for folder in folders for option in options(folder, "data"))
    if name not in known:
        raise InputError(f"{word}: no such data set; {did_you_mean(name, known)}")
    return read_option(folders, "data", name)


def _keys(overrides: Sequence[str]) -> set[str]:
    return {word.partition("=")[0] for word in overrides}


def _plain(group: DictConfig) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(group)
    return dict(values)


def as_word(value: Any) -> str:
    """Return a value as it is written on the command line."""
    return "null" if value is None else str(value)
