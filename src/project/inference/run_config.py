"""Configuration, checkpoint file and data overrides of a trained run. Does not import torch.

Overrides name another data set (`data=cifar10`), or another location of the run's data (`paths.data=sets`).
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from project.config.config_files import conf_folder
from project.config.parts import parts_of
from project.config.resume import change_config
from project.config.source_index import constant_of, inherits
from project.config.suggestions import options
from project.config.validation.data import task_misfit
from project.config.validation.declared_keys import read_option
from project.config.validation.tables import TABLE_ROWS
from project.config.validation.values import find_problem
from project.datamodules.storage.class_folders import ALL
from project.datamodules.storage.tables import read_table
from project.errors import DataError, InputError, one_line
from project.runs import checkpoint_files
from project.runs.migrations import migrate
from project.runs.run_folder import RunFolder
from project.runtime import yaml_files
from project.runtime.text import did_you_mean

CLASSIFIER = "project.modules.classifier.ImageClassifier"
"""The task whose runs have images, classes and everything that belongs to them."""
REQUIRED: dict[str, dict[str, type]] = {
    "task": {"_target_": str},
    "data": {"_target_": str},
    "trainer": {"_target_": str, "accelerator": str},
}
"""Groups and keys that are required to rebuild a LightningModule."""
OF_CLASSIFIERS: dict[str, dict[str, type]] = {
    "model": {"_target_": str},
    "data": {"input_shape": list, "num_classes": int},
    "loss": {"_target_": str},
    "optim": {"_target_": str},
    "scheduler": {"_target_": str},
}
"""Groups and keys that are also required to rebuild an image classifier."""
FIXED = ("input_shape", "num_classes", "grayscale", "white_level", "mean", "std")
"""Keys whose training values also apply to another data set."""
CHECKPOINTS = ("best", "last", "previous")
CHOICES = ("auto", *CHECKPOINTS)

IMAGE_FOLDER = "project.datamodules.image_folder.ImageFolder"
INPUTS = {1: "rows of features", 3: "images"}
"""Kinds of inputs by the length of their shape, for messages."""
OTHER_DATA = {"data", "data.path", "data.table"}
"""Overrides that select inputs other than the run's own."""
SPLIT_KEYS = ("split_seed", "test_size", "val_size", "folds", "fold")


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
        written = _load(run.config_file, run)
        config: Any = OmegaConf.to_container(written, resolve=True)
    except OmegaConfBaseException as error:
        raise _damaged(run, run.config_file, one_line(error)) from error
    _require(config, REQUIRED, run)
    if inherits(config["task"]["_target_"], CLASSIFIER):
        _require(config, OF_CLASSIFIERS, run)
        shape = config["data"]["input_shape"]
        if not all(isinstance(side, int) for side in shape):
            raise _damaged(run, run.config_file, f"data.input_shape is {shape}")
    # The task refers to its parts, so that each is built as a group.
    references: Any = OmegaConf.to_container(written.task)
    config["task"] |= {name: f"${{{group}}}" for name, group in parts_of(references).items()}
    found: dict[str, Any] = config
    return found


def is_image_classifier(config: dict[str, Any]) -> bool:
    """Return True for a run of `ImageClassifier`, or of a class derived from it, on images (C, H, W)."""
    is_classifier = inherits(config["task"]["_target_"], CLASSIFIER)  # read from the sources
    return is_classifier and len(config["data"]["input_shape"]) == 3


def require_image_classifier(config: dict[str, Any], shown: str) -> None:
    """Check that a run classifies images.

    Raises:
        InputError: it does not.
    """
    if not is_image_classifier(config):
        task, shape = config["task"]["_target_"].rpartition(".")[2], config["data"].get("input_shape")
        inputs = "" if shape is None else f" on inputs of shape {shape}"
        raise InputError(
            f"run={shown}: {task}{inputs} does not classify images (expected an ImageClassifier on inputs "
            "[channels, height, width]); choose a run of an image classifier"
        )


def _require(config: dict[str, Any], required: dict[str, dict[str, type]], run: RunFolder) -> None:
    for group, keys in required.items():
        if not isinstance(config.get(group), dict):
            problem = "is not a group" if group in config else "is missing"
            raise _damaged(run, run.config_file, f"{group} {problem}")
        for key, kind in keys.items():
            if not isinstance(value := config[group].get(key), kind):
                raise _damaged(run, run.config_file, f"{group}.{key} is {as_word(value)}")


def read_tta(config: dict[str, Any]) -> str:
    """Return the test-time augmentation of a run's test."""
    return str(config.get("tta", "none"))


def choose_checkpoint(run: RunFolder, weights: str) -> Path:
    """Return the path of the checkpoint that `weights` names; the file may be missing or damaged."""
    if weights not in CHOICES:
        if not (file := Path(weights)).is_file():
            raise InputError(f"weights={weights}: no such file; {did_you_mean(weights, CHOICES)}")
        return file
    if weights == "auto":
        tested = run.read_status().get("weights")
        has_best = (run.checkpoints / checkpoint_files.BEST).exists()
        weights = tested if tested in CHECKPOINTS else "best" if has_best else "last"
    return run.checkpoints / f"{weights}.ckpt"


def find_checkpoint(run: RunFolder, weights: str) -> Path:
    """Return the checkpoint file that `weights` names; see `load_run`.

    Raises:
        DataError: the file is missing or damaged.
    """
    file = choose_checkpoint(run, weights)
    if weights in CHOICES and (problem := checkpoint_files.find_damage(file)):
        files = {name: run.checkpoints / f"{name}.ckpt" for name in CHECKPOINTS}
        intact = [name for name, file in files.items() if not checkpoint_files.find_damage(file)]
        hint = f"there is weights={' or '.join(intact)}" if intact else "there is no other checkpoint"
        raise DataError(f"run={run.shown}: {file} {problem}; {hint}")
    return file


def compose_data(run: RunFolder, config: dict[str, Any], overrides: Sequence[str]) -> DictConfig:
    """Return a run's composed configuration with another data set."""
    trained = config["data"]
    composed = _load(run.composed_file, run)
    if not isinstance(composed.get("data"), DictConfig):
        raise _damaged(run, run.composed_file, "no key data")
    fixed, shape = {}, None
    if is_image_classifier(config):
        shape = tuple(trained["input_shape"])  # C, H, W
        fixed = {key: trained[key] for key in FIXED if key in trained} | {"grayscale": shape[0] == 1}
    override_data(composed, overrides, fixed, shape, _config_folders(run))
    _check_fit(config, composed.data, overrides)
    unresolved: Any = OmegaConf.to_container(composed.data)
    if missing := [key for key, value in unresolved.items() if value == "???"]:
        raise InputError(f"data.{missing[0]}: is missing; give data.{missing[0]}=…")
    return composed


def _check_fit(config: dict[str, Any], data: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse another data set whose inputs or targets are not those of the run."""
    name = next((word for word in overrides if word.startswith("data=")), None)
    if name is None:
        return
    misfit = task_misfit(config["task"]["_target_"], constant_of(data._target_, "TARGET_TYPE"))
    trained, given = len(config["data"].get("input_shape") or ()), constant_of(data._target_, "INPUT_NDIM")
    if not misfit and trained and given and trained != given:
        wanted, got = (INPUTS.get(ndim, f"{ndim} dimensions") for ndim in (trained, given))
        misfit = f"expected {wanted}, got {got}"
    if misfit:
        raise InputError(f"{name}: does not fit the run's task ({misfit}); choose another data set")


def selects_other_data(overrides: Sequence[str]) -> bool:
    """Return True if overrides select inputs other than the run's own."""
    return bool(OTHER_DATA & _keys(overrides))


def adapt_other_data(
    data: DictConfig, overrides: Sequence[str], classes: Sequence[str] | None, features: Sequence[str] | None
) -> None:
    """Set the network's classes and features for a folder or table of other data, and test on all of it.

    A table with a split column keeps its splits.

    Args:
        data: configuration of the data set, changed in place.
        overrides: overrides that it contains.
        classes: classes of the network, in the order of the outputs; None for other targets.
        features: feature columns of the training, in their order; None for other inputs.
    """
    given = _keys(overrides)
    is_table = inherits(data._target_, TABLE_ROWS) and "table" in list(data)
    if not selects_other_data(overrides) or not (is_table or data._target_ == IMAGE_FOLDER):
        return
    with open_dict(data):
        if classes is not None and "data.classes" not in given:
            data.classes, data.num_classes = list(classes), len(classes)
        if features is not None and "feature_columns" in list(data) and "data.feature_columns" not in given:
            data.feature_columns = list(features)
        if is_table and "data.split_column" not in given:
            known = read_table(data.table).columns
            data.split_column = data.split_column if data.split_column in known else None
        if "data.test_size" not in given and (not is_table or data.split_column is None):
            data.test_size = ALL


def override_data(
    config: DictConfig,
    overrides: Sequence[str],
    fixed: dict[str, Any],
    shape: tuple[int, int, int] | None,
    sources: Sequence[Path] = (),
) -> None:
    """Apply data overrides to a run's composed configuration.

    Args:
        config: the configuration, changed in place.
        overrides: overrides such as `data=cifar10`, `data.path=photos`, `paths.data=sets`.
        fixed: values of the data set that are kept from training unless overridden.
        shape: shape (C, H, W) of the network's input images; None for other inputs.
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
                config.data = _read_data_option(word, [*sources, conf_folder()])
        for key, value in fixed.items():
            # `key in config.data` would resolve the folder before it is overridden.
            if key in list(config.data) and f"data.{key}" not in given and key != "num_classes":
                config.data[key] = value
        if shape and OTHER_DATA & given and "resize" in config.data and config.data.resize is None:
            config.data.resize = list(shape[1:])
    declared = {f"data.{key}": value for key, value in _plain(config.data).items()}
    for word in overrides:
        if not word.startswith("data="):
            change_config(config, word, conf_folder())
    changed = _plain(config.data)
    for key in sorted(given & declared.keys()):
        if problem := find_problem(key, changed[key.removeprefix("data.")], declared):
            raise InputError(problem)
    if OTHER_DATA & given:
        return
    for key in SPLIT_KEYS:
        now, before = changed.get(key), trained.get(key)
        if f"data.{key}" in given and now != before:
            raise InputError(
                f"data.{key}={as_word(now)}: the run had {as_word(before)}; with another split, images that "
                "it trained on would be tested: leave it out, or give other data (data=…, data.path=… or "
                "data.table=…)"
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
    """Return a value as written on the command line."""
    return "null" if value is None else str(value)


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
