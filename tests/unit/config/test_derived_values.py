"""What a configuration leaves open: keys with defaults in the constructor, and relative paths after chdir."""

import os
from pathlib import Path

import pytest
import user_datamodules
from conftest import Compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from project.config.derived_values import complete
from project.config.instantiate import build
from project.config.signatures import Signature, signature_of
from project.config.validation import find_problems
from project.runs.run_folder import RunFolder
from project.train import train


def own(composer: Compose, name: str, run: Path | str = "outputs/run", **data) -> DictConfig:
    """The default configuration with a data set's YAML of nothing but its class."""
    config = composer("model=mlp", "trainer.max_epochs=20", "trainer.accelerator=cpu", "logger=none", run=run)
    with open_dict(config):
        config.data = {"_target_": f"user_datamodules.{name}", **data}
    return config


def test_a_yaml_file_may_leave_out_what_the_constructor_knows(composer: Compose, tmp_path: Path) -> None:
    config = own(composer, "HalfWhiteImages", tmp_path / "run", count=128)
    complete(config)
    expected = {"input_shape": [1, 8, 8], "num_classes": 2, "batch_size": 64, "val_size": 0.1}
    assert OmegaConf.to_container(config.data) == {
        "_target_": "user_datamodules.HalfWhiteImages",
        "count": 128,
        **expected,
    }
    assert list(find_problems(config)) == []
    before = OmegaConf.to_container(config.data)
    complete(config)
    assert OmegaConf.to_container(config.data) == before
    with open_dict(config):
        del config["hydra"]
    (tmp_path / "run").mkdir()
    assert train(config) == 1.0  # accuracy of what any network can learn


def test_what_a_yaml_file_says_counts_more_than_the_constructor(composer: Compose) -> None:
    config = own(composer, "HalfWhiteImages", batch_size=16, input_shape=[3, 4, 8])
    complete(config)
    assert (config.data.batch_size, config.data.input_shape, config.data.num_classes) == (16, [3, 4, 8], 2)
    with open_dict(config):
        for key in ("max_steps", "precision", "max_time"):
            del config.trainer[key]
    complete(config)
    trainer = {key: config.trainer[key] for key in ("max_epochs", "max_steps", "precision", "max_time")}
    assert trainer == {"max_epochs": 20, "max_steps": -1, "precision": None, "max_time": None}


def test_defaults_are_read_from_the_source() -> None:
    found = signature_of("project.datamodules.mnist.MNIST")
    assert isinstance(found, Signature)
    assert {
        key: found.defaults.get(key) for key in ("input_shape", "num_classes", "batch_size", "resize")
    } == {
        "input_shape": (1, 28, 28),
        "num_classes": 10,
        "batch_size": 64,
        "resize": None,
    }
    assert "path" not in found.defaults


@pytest.mark.parametrize("name", ["PlainDataModule", "NoArgumentDataModule", "HalfWhiteImages"])
def test_any_data_module_can_be_built(composer: Compose, name: str) -> None:
    complete(own(composer, name))
    made = build({"data": {"_target_": f"user_datamodules.{name}"}}, "data")
    assert type(made) is getattr(user_datamodules, name)


def test_relative_paths_are_those_of_the_command_after_chdir(
    composer: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights.pth").touch()
    options = ("data=mnist", "paths.data=sets", "ckpt_path=a/b.ckpt", "hydra.job.chdir=true")
    network = ("model=torchvision", "model.weights=weights.pth", "model.name=resnet18")
    config = composer(*options, *network, "+data.own_file=/there", "+model.label_file=null")
    with read_write(config.hydra.runtime):
        config.hydra.runtime.cwd = str(tmp_path)
    HydraConfig.instance().set_config(config)
    complete(config)
    monkeypatch.chdir("/")  # the run's folder, say
    assert config.data.path == str(tmp_path / "sets")
    assert config.data.image_cache == str(tmp_path / "sets" / "image_cache")
    assert config.paths.outputs == str(tmp_path / "outputs")
    assert config.ckpt_path == str(tmp_path / "a" / "b.ckpt")
    assert config.model.weights == str(tmp_path / "weights.pth")
    assert (config.data.own_file, config.model.label_file) == ("/there", None)
    assert RunFolder(tmp_path / "outputs" / "1").shown == os.path.join("outputs", "1")
    named = composer(*options, "model=torchvision", "model.weights=DEFAULT", "model.name=resnet18")
    with read_write(named.hydra.runtime):
        named.hydra.runtime.cwd = str(tmp_path)
    complete(named)
    assert named.model.weights == "DEFAULT"
    unmoved = composer("data=mnist", "paths.data=sets")
    complete(unmoved)
    assert unmoved.data.path == "sets"
