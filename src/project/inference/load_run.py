"""A trained run, made again from its folder: its network with the weights that were tested, and its data."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from project.config.instantiate import build, build_module
from project.datamodules.base import ImageDataModule
from project.datamodules.storage.validation import check_classes, per_channel
from project.errors import DataError, InputError, one_line
from project.inference import run_config
from project.inference.data_override import name_classes
from project.modules.classifier import ImageClassifier
from project.runs import checkpoints as checkpoint
from project.runs.run_folder import RunFolder
from project.runtime.library_warnings import silence_libraries
from project.runtime.text import shown


@dataclass(frozen=True)
class Trained:
    """A run whose network is ready to be asked.

    Args:
        run: its folder.
        config: as it was trained, resolved, plain values.
        checkpoint: the file that the weights are from.
        module: with the weights of that file, the average if the run kept one; in evaluation mode, on the
            CPU, not compiled.
        class_names: of the labels, in their order.
        mean: of each channel, on the scale [0, 1], as trained.
        std: likewise.
        data_overrides: by which the data set differs from the run's own.
    """

    run: RunFolder
    config: dict[str, Any]
    checkpoint: Path
    module: ImageClassifier
    class_names: list[str]
    mean: list[float]
    std: list[float]
    data_overrides: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the network takes."""
        channels, height, width = self.config["data"]["input_shape"]
        return channels, height, width

    @cached_property
    def datamodule(self) -> ImageDataModule:
        """The data set, not set up yet; images are normalized as in training, whatever they are.

        Raises:
            InputError: the overrides do not make a data set of the network's classes, or the run's own data
                have others by now.
        """
        config = self.data_config()
        datamodule: ImageDataModule = build({"data": config}, "data")
        if datamodule.num_classes != (wanted := self.config["data"]["num_classes"]):
            raise InputError(
                f"data.num_classes={datamodule.num_classes}: the run's network has {wanted} classes; choose "
                "data that has the same"
            )
        names = list(datamodule.class_names)
        if self.data_overrides and names == [str(label) for label in range(wanted)]:
            return datamodule  # other data whose classes have numbers for names
        remedy = "give data of the same classes, in folders of the same names"
        check_classes(self.class_names, names, datamodule.source, remedy)
        return datamodule

    def data_config(self) -> dict[str, Any]:
        """The data set's configuration, resolved, plain values.

        Raises:
            InputError: the overrides are wrong.
        """
        trained = self.config["data"]
        config = trained
        if self.data_overrides:
            try:
                composed = run_config.with_other_data(self.run, self.config, self.data_overrides)
                name_classes(composed.data, self.data_overrides, self.class_names)
                config = OmegaConf.to_container(composed.data, resolve=True, throw_on_missing=True)
            except OmegaConfBaseException as error:
                told = one_line(error)
                for kind in (InputError, DataError):  # by a resolver of ours
                    if own := told.partition(f"{kind.__name__} raised while resolving interpolation: ")[2]:
                        raise kind(own) from error
                raise InputError(f"data: {told}; give it as data.KEY=VALUE") from error
        return {**config, "mean": self.mean, "std": self.std}

    def trainer(self, **changes: Any) -> L.Trainer:
        """A trainer like the run's, on one device, that logs and keeps nothing.

        Args:
            changes: of its keys, such as `accelerator`.
        """
        config: dict[str, Any] = {**self.config["trainer"], "devices": 1, "num_nodes": 1, "strategy": "auto"}
        config |= {"profiler": None, "max_time": None} | changes
        on_gpu = torch.accelerator.is_available() and config["accelerator"] != "cpu"
        if not on_gpu:
            config["accelerator"] = "cpu"
            if str(config["precision"]).startswith("16"):  # which only GPUs compute
                config["precision"] = "32-true"
        trainer: L.Trainer = build(
            {"trainer": config},
            "trainer",
            callbacks=[],
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            default_root_dir=str(self.run.path),
            plugins=[LightningEnvironment()],
        )
        return trainer


def load(run: RunFolder, weights: str = "auto", data: Sequence[str] = ()) -> Trained:
    """Make a run's network again, with its weights.

    Args:
        run: its folder, wherever it lies by now.
        weights: `auto`, those that the run was tested with; `best`, `last`, `previous`, or a checkpoint file
            of this network.
        data: overrides for the data set: `data=cifar10`, `data.path=photos`, `paths.data=sets`.

    Raises:
        InputError: the folder is damaged or has no such checkpoint.
    """
    silence_libraries()
    config = run_config.read_config(run)
    file = run_config.find_checkpoint(run, weights)
    module = plain_module(config)
    try:
        saved = checkpoint.read(file, module.state_dict())
    except InputError as error:  # which names the key of training
        raise InputError(str(error).replace("ckpt_path=", "weights=", 1)) from error
    if config["trainer"].get("precision") == "64-true":
        module.double()
    module.load_state_dict(saved["state_dict"])
    state = saved.get(config["data"]["_target_"].rpartition(".")[2], {})
    channels = config["data"]["input_shape"][0]
    mean, std = (state.get(key) or config["data"].get(key) for key in ("mean", "std"))
    if mean is None or std is None:
        raise InputError(f"run={run.shown}: {file} has no statistics of its images; train the run again")
    names = state.get("class_names") or [str(label) for label in range(config["data"]["num_classes"])]
    return Trained(
        run=run,
        config=config,
        checkpoint=file,
        module=module.eval(),
        class_names=[shown(str(name)) for name in names],
        mean=list(per_channel("mean", mean, channels) or ()),
        std=list(per_channel("std", std, channels) or ()),
        data_overrides=tuple(data),
    )


def plain_module(config: dict[str, Any]) -> ImageClassifier:
    """A run's module, not compiled, with weights as they are before training; those that its network began
    with need not be there any more.

    Args:
        config: of the run, resolved.

    Raises:
        InputError: a constructor refuses the values.
    """
    network = dict(config["model"])
    if "weights" in network:
        network |= {"weights": None} | ({"freeze": False} if "freeze" in network else {})
    return build_module({**config, "model": network, "compile": False}, record=config)
