"""A trained run loaded from its folder: network, weights and data set."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from project.config.instantiate import build, build_task
from project.datamodules.base import SupervisedDataModule
from project.datamodules.image_base import ImageDataModule
from project.datamodules.storage.preprocessing import per_channel
from project.datamodules.targets import check_classes
from project.errors import DataError, InputError, one_line
from project.inference import run_config
from project.modules.classifier import ImageClassifier
from project.modules.distillation import Teacher
from project.runs import checkpoint_files
from project.runs.comparison import find_trained
from project.runs.run_folder import RunFolder
from project.runtime.process import silence_libraries
from project.runtime.text import printable


@contextmanager
def explain_lightning_errors() -> Iterator[None]:
    """Report Lightning's refusals of a module or a loader as an `InputError` of one line."""
    try:
        yield
    except MisconfigurationException as error:
        raise InputError(f"run: {one_line(error)}") from error


@dataclass(frozen=True, kw_only=True)
class TrainedModule:
    """A run of any task, with the trained weights in its LightningModule.

    Args:
        run: the run's folder.
        config: the run's configuration, resolved to plain values.
        checkpoint: the checkpoint file of the weights.
        module: the module with these weights, on the CPU, in evaluation mode.
        data_overrides: overrides of the run's data set.
        data_state: state of the data module in the checkpoint.
    """

    run: RunFolder
    config: dict[str, Any]
    checkpoint: Path
    module: Any
    data_overrides: tuple[str, ...] = ()
    data_state: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def datamodule(self) -> Any:
        """The run's data module with the overrides applied; `setup` has not been called.

        Other data than the run's own are normalized as in training, and its training split is not needed.
        """
        datamodule = build({"data": self.data_config()}, "data")
        if isinstance(datamodule, SupervisedDataModule) and self._has_other_data and self.data_state:
            datamodule.allow_changed_images = True
            datamodule.load_state_dict(self.data_state)
        return datamodule

    @property
    def _has_other_data(self) -> bool:
        return run_config.selects_other_data(self.data_overrides)

    def data_config(self) -> dict[str, Any]:
        """Return the data set's configuration with the overrides applied, resolved to plain values."""
        config: dict[str, Any] = self.config["data"]
        if self.data_overrides:
            try:
                composed = run_config.compose_data(self.run, self.config, self.data_overrides)
                self._adapt_data(composed)
                resolved: Any = OmegaConf.to_container(composed.data, resolve=True, throw_on_missing=True)
                config = resolved
            except OmegaConfBaseException as error:
                message = one_line(error)
                for kind in (InputError, DataError):  # raised by one of our own resolvers
                    if own := message.partition(f"{kind.__name__} raised while resolving interpolation: ")[2]:
                        raise kind(own) from error
                raise InputError(f"data: {message}; give it as data.KEY=VALUE") from error
        return config

    def _adapt_data(self, composed: DictConfig) -> None:
        """Adapt a configuration with other data to the run."""
        names = self.data_state.get("class_names")
        is_of_classes = getattr(self.module, "TARGET_TYPE", None) == "class"
        run_config.adapt_other_data(
            composed.data,
            self.data_overrides,
            names if is_of_classes else None,
            self.data_state.get("feature_columns"),
        )

    def trainer(self, **changes: Any) -> L.Trainer:
        """Build a trainer with the run's settings, on one device, without loggers and checkpoints.

        Args:
            changes: arguments of `lightning.Trainer` to replace, such as `accelerator` or `callbacks`.
        """
        callbacks = changes.pop("callbacks", [])
        config: dict[str, Any] = {**self.config["trainer"], "devices": 1, "num_nodes": 1, "strategy": "auto"}
        config |= {"profiler": None, "max_time": None} | changes
        if config["accelerator"] == "cpu" or not torch.accelerator.is_available():
            config["accelerator"] = "cpu"
            if str(config["precision"]).startswith("16"):  # CPUs do not train or infer in float16
                config["precision"] = "32-true"
        trainer: L.Trainer = build(
            {"trainer": config},
            "trainer",
            callbacks=callbacks,
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            default_root_dir=str(self.run.path),
            plugins=[LightningEnvironment()],
        )
        return trainer


@dataclass(frozen=True, kw_only=True)
class TrainedRun(TrainedModule):
    """A run whose network is ready for inference on images.

    Args:
        module: the network with these weights (the EMA weights if the run kept them), on the CPU, in
            evaluation mode, not compiled.
        mean: mean of each channel in [0, 1], from training.
        std: standard deviation of each channel in [0, 1], from training.
    """

    module: ImageClassifier
    mean: list[float]
    std: list[float]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the logits."""
        names = self.data_state.get("class_names") or range(self.config["data"]["num_classes"])
        return [printable(str(name)) for name in names]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the network's input images."""
        channels, height, width = self.config["data"]["input_shape"]
        return channels, height, width

    def choose_tta(self, tta: str | None) -> str:
        """Return the given test-time augmentation; for None, that of the run's test."""
        return tta or run_config.read_tta(self.config)

    @cached_property
    def datamodule(self) -> ImageDataModule:
        """The data set, normalized as in training; `setup` has not been called.

        Raises:
            InputError: the overrides are wrong, or the data's classes are not the network's.
        """
        datamodule: ImageDataModule = build({"data": self.data_config()}, "data")
        if datamodule.num_classes != (wanted := self.config["data"]["num_classes"]):
            raise InputError(
                f"data.num_classes={datamodule.num_classes}: the run's network has {wanted} classes; choose "
                "data that has the same"
            )
        names = list(datamodule.class_names)
        if self.data_overrides and names == [str(label) for label in range(wanted)]:
            return datamodule  # numbered classes are compatible with any names
        remedy = "give data of the same classes, in folders of the same names"
        check_classes(self.class_names, names, datamodule.source, remedy)
        return datamodule

    def data_config(self) -> dict[str, Any]:
        return {**super().data_config(), "mean": self.mean, "std": self.std}

    def _adapt_data(self, composed: DictConfig) -> None:
        run_config.adapt_other_data(composed.data, self.data_overrides, self.class_names, None)


def load_run(run: RunFolder, weights: str = "auto", data: Sequence[str] = ()) -> TrainedRun:
    """Load a run's network with its weights.

    Args:
        run: the run's folder, at its present path.
        weights: `auto` (those of the run's test), `best`, `last`, `previous`, or a checkpoint file of the
            same network.
        data: overrides of the data set, such as `data=cifar10`, `data.path=photos`, `paths.data=sets`.

    Raises:
        InputError: the folder is damaged or has no such checkpoint.
    """
    silence_libraries()
    config = run_config.read_config(run)
    run_config.require_image_classifier(config, run.shown)
    file = run_config.find_checkpoint(run, weights)
    module = build_untrained(config)
    saved = _load_weights(module, file)
    state = _data_state(config, saved)
    channels = config["data"]["input_shape"][0]
    mean, std = (state.get(key) or config["data"].get(key) for key in ("mean", "std"))
    if mean is None or std is None:
        raise InputError(f"run={run.shown}: {file} has no mean and std of the images; train the run again")
    return TrainedRun(
        run=run,
        config=config,
        checkpoint=file,
        module=module.eval(),
        mean=list(per_channel("mean", mean, channels) or ()),
        std=list(per_channel("std", std, channels) or ()),
        data_overrides=tuple(data),
        data_state=state,
    )


def load_module(run: RunFolder, weights: str = "auto", data: Sequence[str] = ()) -> TrainedModule:
    """Load the LightningModule of a run of any task with its weights; arguments and errors of `load_run`."""
    silence_libraries()
    config = run_config.read_config(run)
    file = run_config.find_checkpoint(run, weights)
    module = build_task(_without_downloads(config))
    saved = _load_weights(module, file)
    module.on_load_checkpoint(saved)  # as Lightning's `load_from_checkpoint` does
    return TrainedModule(
        run=run,
        config=config,
        checkpoint=file,
        module=module.eval(),
        data_overrides=tuple(data),
        data_state=_data_state(config, saved),
    )


def _data_state(config: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the data module in a checkpoint."""
    state: dict[str, Any] = saved.get(config["data"]["_target_"].rpartition(".")[2], {})
    return state


def _load_weights(module: L.LightningModule, file: Path) -> dict[str, Any]:
    """Load the weights of a checkpoint into a module, and return the checkpoint."""
    try:
        saved = checkpoint_files.read(file, module.state_dict())
    except InputError as error:  # names the key of the training command
        raise InputError(str(error).replace("ckpt_path=", "weights=", 1)) from error
    module.load_state_dict(saved["state_dict"])
    return saved


def build_untrained(config: dict[str, Any]) -> ImageClassifier:
    """Build a run's module in the run's precision, not compiled, without downloading pretrained weights."""
    module = build_task(_without_downloads(config))
    assert isinstance(module, ImageClassifier)
    return module.double() if config["trainer"].get("precision") == "64-true" else module


def load_teacher(folder: str, config: dict[str, Any]) -> Teacher:
    """Load the teacher of a distillation, for images and classes of the student's configuration.

    Args:
        folder: run folder, or sweep folder (its best run).
        config: the student's, resolved to plain values.

    Raises:
        InputError: the folder is not a run folder, or its network takes other images or has other classes.
    """
    run = find_trained(folder, key="task.teacher")
    with torch.random.fork_rng(devices=[]):  # the student's random numbers do not depend on the teacher
        trained = load_run(run)
    for key in ("input_shape", "num_classes"):
        own, wanted = trained.config["data"][key], config["data"][key]
        if own != wanted:
            raise InputError(
                f"task.teacher={folder}: was trained with data.{key}={own} (expected {wanted}); choose "
                f"another teacher, or set data.{key}={own}"
            )
    return Teacher(trained.module, trained.mean, trained.std, trained.class_names)


def _without_downloads(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration that builds without compiling and without downloading pretrained weights."""
    changed = {**config, "task": dict(config["task"])}
    if changed["task"].get("compile") is True:
        changed["task"]["compile"] = False
    if "weights" in (network := dict(config.get("model", {}))):
        changed["model"] = network | {"weights": None} | ({"freeze": False} if "freeze" in network else {})
    return changed
