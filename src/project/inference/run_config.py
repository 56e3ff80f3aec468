"""Configuration, weights' file and other data of a trained run, from its folder. Needs no torch."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from project.errors import InputError, one_line
from project.inference.data_override import as_word, override_data
from project.runs import checkpoint_files
from project.runs.migrations import migrate
from project.runs.run_folder import RunFolder
from project.runtime import yaml_files
from project.runtime.text import did_you_mean
from project.runtime.yaml_files import config_folders

GROUPS: dict[str, dict[str, type]] = {
    "model": {"_target_": str},
    "data": {"_target_": str, "input_shape": list, "num_classes": int},
    "loss": {"_target_": str},
    "optim": {"_target_": str},
    "scheduler": {"_target_": str},
    "trainer": {"_target_": str, "accelerator": str},
}
"""Of a run's configuration, and keys that its network cannot be made again without."""
AS_TRAINED = ("input_shape", "num_classes", "grayscale", "white_level", "mean", "std")
"""Of another data set, what stays as the network was trained with it."""
CHOICES = ("auto", "best", "last", "previous")


def refuse_wrong(run: RunFolder, weights: str, data: Sequence[str]) -> None:
    """Find what is wrong with a command's words about a run before torch is imported.

    Args:
        run: its folder.
        weights: as `project.inference.load_run.load` takes it.
        data: overrides for the data set.

    Raises:
        InputError: the folder is damaged, has no such weights, or the overrides are wrong.
    """
    config = read_config(run)
    if data:
        with suppress(OmegaConfBaseException):  # told when all values are resolved
            with_other_data(run, config, data)
    find_checkpoint(run, weights)


def read_config(run: RunFolder) -> dict[str, Any]:
    """Read a run's configuration: resolved, plain values.

    Raises:
        InputError: the file is damaged.
    """
    try:
        config: Any = OmegaConf.to_container(_load(run.config_file, run), resolve=True)
    except OmegaConfBaseException as error:  # values that refer to others that are not there
        raise _damaged(run, run.config_file, one_line(error)) from error
    for group, keys in GROUPS.items():
        if not isinstance(config.get(group), dict):
            what = "is no group" if group in config else "is missing"
            raise _damaged(run, run.config_file, f"{group} {what}")
        for key in keys:
            if not isinstance(value := config[group].get(key), keys[key]):
                raise _damaged(run, run.config_file, f"{group}.{key} is {as_word(value)}")
    shape = config["data"]["input_shape"]
    if len(shape) != 3 or not all(isinstance(side, int) for side in shape):
        raise _damaged(run, run.config_file, f"data.input_shape is {shape}")
    found: dict[str, Any] = config
    return found


def find_checkpoint(run: RunFolder, weights: str) -> Path:
    """The file of a run's weights that `weights` names, as `project.inference.load_run.load` takes it.

    Raises:
        InputError: there is none, or it is damaged.
    """
    names = {name: run.checkpoints / f"{name}.ckpt" for name in CHOICES[1:]}
    if weights not in CHOICES:
        if not (file := Path(weights)).is_file():
            raise InputError(f"weights={weights}: no such file; {did_you_mean(weights, CHOICES)}")
        return file
    if weights == "auto":
        tested = run.read_status().get("weights")
        weights = tested if tested in names else "best" if names["best"].exists() else "last"
    if problem := checkpoint_files.find_damage(names[weights]):
        whole = [name for name, file in names.items() if not checkpoint_files.find_damage(file)]
        hint = f"there is weights={' or '.join(whole)}" if whole else "there is no other checkpoint"
        raise InputError(f"run={run.shown}: {names[weights]} {problem}; {hint}")
    return names[weights]


def with_other_data(run: RunFolder, config: dict[str, Any], overrides: Sequence[str]) -> DictConfig:
    """A run's configuration as it was composed, with another data set.

    Args:
        run: its folder.
        config: as it was trained, resolved, plain values.
        overrides: for the data set.

    Raises:
        InputError: the overrides are wrong.
    """
    trained = config["data"]
    composed = _load(run.composed_file, run)
    if not isinstance(composed.get("data"), DictConfig):
        raise _damaged(run, run.composed_file, "no key data")
    fixed = {key: trained[key] for key in AS_TRAINED if key in trained}
    channels, height, width = trained["input_shape"]
    fixed["grayscale"] = channels == 1
    override_data(composed, overrides, fixed, (channels, height, width), _config_folders(run))
    unresolved: Any = OmegaConf.to_container(composed.data)
    if missing := [key for key, value in unresolved.items() if value == "???"]:
        raise InputError(f"data.{missing[0]}: is missing; give data.{missing[0]}=…")
    return composed


def _config_folders(run: RunFolder) -> list[Path]:
    """Folders of the configuration that the run was composed from, as far as they are still there."""
    recorded = None
    if run.hydra_file.exists():
        recorded = OmegaConf.select(_load(run.hydra_file, run), "hydra.runtime.config_sources")
    copy = run.path.absolute().parent / "conf"  # of a sweep, wherever that lies by now
    return [folder for folder in (copy, *config_folders(recorded or ())) if folder.is_dir()]


def _load(file: Path, run: RunFolder) -> DictConfig:
    try:
        found = yaml_files.load(file)
    except InputError as error:
        raise _damaged(run, file, str(error)) from error
    if not found:
        raise _damaged(run, file, "no keys")
    plain: Any = OmegaConf.to_container(found)
    return OmegaConf.create(migrate(plain))


def _damaged(run: RunFolder, file: Path, what: str) -> InputError:
    return InputError(f"run={run.shown}: {file} is damaged ({what}); restore it")
