"""Configuration, checkpoint file and data overrides of a trained run. Imports no torch."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from project.errors import InputError, one_line
from project.inference.data_override import as_word, override_data
from project.runs import checkpoints
from project.runs.migrations import migrate
from project.runs.run_folder import RunFolder
from project.runtime import yaml_files
from project.runtime.text import did_you_mean

REQUIRED: dict[str, dict[str, type]] = {
    "model": {"_target_": str},
    "data": {"_target_": str, "input_shape": list, "num_classes": int},
    "loss": {"_target_": str},
    "optim": {"_target_": str},
    "scheduler": {"_target_": str},
    "trainer": {"_target_": str, "accelerator": str},
}
"""Groups and keys without which the network cannot be rebuilt."""
FIXED = ("input_shape", "num_classes", "grayscale", "white_level", "mean", "std")
"""Keys of another data set that stay as in training."""
CHECKPOINTS = ("best", "last", "previous")
CHOICES = ("auto", *CHECKPOINTS)


def check_request(run: RunFolder, weights: str, data: Sequence[str]) -> None:
    """Check a command's run, weights and data overrides before torch is imported."""
    config = read_config(run)
    if data:
        with suppress(OmegaConfBaseException):  # reported when all values are resolved
            compose_data(run, config, data)
    find_checkpoint(run, weights)


def read_config(run: RunFolder) -> dict[str, Any]:
    """Return a run's configuration, resolved to plain values."""
    try:
        config: Any = OmegaConf.to_container(_load(run.config_file, run), resolve=True)
    except OmegaConfBaseException as error:
        raise _damaged(run, run.config_file, one_line(error)) from error
    for group, keys in REQUIRED.items():
        if not isinstance(config.get(group), dict):
            problem = "is no group" if group in config else "is missing"
            raise _damaged(run, run.config_file, f"{group} {problem}")
        for key, kind in keys.items():
            if not isinstance(value := config[group].get(key), kind):
                raise _damaged(run, run.config_file, f"{group}.{key} is {as_word(value)}")
    shape = config["data"]["input_shape"]
    if len(shape) != 3 or not all(isinstance(side, int) for side in shape):
        raise _damaged(run, run.config_file, f"data.input_shape is {shape}")
    found: dict[str, Any] = config
    return found


def read_tta(config: dict[str, Any]) -> str:
    """Return the test-time augmentation of a run's own test."""
    return str(config.get("tta", "none"))


def find_checkpoint(run: RunFolder, weights: str) -> Path:
    """Return the checkpoint file that `weights` names; see `load_run`."""
    files = {name: run.checkpoints / f"{name}.ckpt" for name in CHECKPOINTS}
    if weights not in CHOICES:
        if not (file := Path(weights)).is_file():
            raise InputError(f"weights={weights}: no such file; {did_you_mean(weights, CHOICES)}")
        return file
    if weights == "auto":
        tested = run.read_status().get("weights")
        weights = tested if tested in files else "best" if files["best"].exists() else "last"
    if problem := checkpoints.find_damage(files[weights]):
        intact = [name for name, file in files.items() if not checkpoints.find_damage(file)]
        hint = f"there is weights={' or '.join(intact)}" if intact else "there is no other checkpoint"
        raise InputError(f"run={run.shown}: {files[weights]} {problem}; {hint}")
    return files[weights]


def compose_data(run: RunFolder, config: dict[str, Any], overrides: Sequence[str]) -> DictConfig:
    """Return a run's composed configuration with another data set."""
    trained = config["data"]
    composed = _load(run.composed_file, run)
    if not isinstance(composed.get("data"), DictConfig):
        raise _damaged(run, run.composed_file, "no key data")
    channels, height, width = trained["input_shape"]
    fixed = {key: trained[key] for key in FIXED if key in trained} | {"grayscale": channels == 1}
    override_data(composed, overrides, fixed, (channels, height, width), _config_folders(run))
    unresolved: Any = OmegaConf.to_container(composed.data)
    if missing := [key for key, value in unresolved.items() if value == "???"]:
        raise InputError(f"data.{missing[0]}: is missing; give data.{missing[0]}=…")
    return composed


def _config_folders(run: RunFolder) -> list[Path]:
    """Return the configuration folders that the run was composed from, if they still exist."""
    recorded = None
    if run.hydra_file.exists():
        recorded = OmegaConf.select(_load(run.hydra_file, run), "hydra.runtime.config_sources")
    sweep_copy = run.path.absolute().parent / "conf"
    return [path for path in (sweep_copy, *yaml_files.config_folders(recorded or ())) if path.is_dir()]


def _load(file: Path, run: RunFolder) -> DictConfig:
    try:
        config = yaml_files.load(file)
    except InputError as error:
        raise _damaged(run, file, str(error)) from error
    if not config:
        raise _damaged(run, file, "no keys")
    plain: Any = OmegaConf.to_container(config)
    return OmegaConf.create(migrate(plain))


def _damaged(run: RunFolder, file: Path, problem: str) -> InputError:
    return InputError(f"run={run.shown}: {file} is damaged ({problem}); restore it")
