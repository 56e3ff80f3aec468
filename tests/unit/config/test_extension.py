"""A network, a data set and an optimizer of one's own are checked from their files and YAML alone."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from conftest import CONF
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from project.config.resolvers import register_resolvers
from project.config.validation import find_problems

SOURCE = """
from typing import Annotated, Literal

from torch import nn
from torch.optim import SGD

from project.datamodules.image_base import ImageDataModule
from project.runtime.bounds import Range

CONFIG_TARGETS = ("OwnNet", "OwnData", "OwnSGD")
Pooling = Literal["mean", "max"]


class OwnNet(nn.Module):
    def __init__(
        self,
        input_shape: list[int],
        num_classes: int,
        width: Annotated[int, Range(1, 512)] = 32,
        pooling: Pooling = "mean",
    ) -> None:
        super().__init__()


class OwnData(ImageDataModule):
    DATASET_FACTS = {"images": 100, "shape": (1, 8, 8), "classes": 2}

    def __init__(self, shade: Annotated[float, Range(0, below=1)] = 0.5, **base) -> None:
        super().__init__(name="own", **base)


class OwnSGD(SGD):
    def __init__(self, params, lr: Annotated[float, Range(above=0)], warm_steps: int = 0) -> None:
        super().__init__(params, lr)
"""
YAML = {
    "model/own_net": (
        "_target_: own_parts.OwnNet\ninput_shape: ${data.input_shape}\nnum_classes: ${data.num_classes}\n"
        "width: 32\npooling: mean\n"
    ),
    "data/own_data": (
        "_target_: own_parts.OwnData\ninput_shape: [1, 8, 8]\nnum_classes: 2\nbatch_size: 8\n"
        "eval_batch_size: 8\nval_size: 10\nfolds: null\nfold: 0\nshade: 0.5\nseed: ${seed}\n"
    ),
    "optim/own_sgd": "_target_: own_parts.OwnSGD\n_partial_: true\nlr: 0.1\nwarm_steps: 0\n",
}
OWN = ("model=own_net", "data=own_data", "optim=own_sgd")


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "own_parts.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in YAML.items():
        file = tmp_path / "conf" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    hydra, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    yield tmp_path / "conf"
    GlobalHydra.instance().hydra, HydraConfig.instance().cfg = hydra, config  # of the other tests' composer
    assert "own_parts" not in sys.modules, "checks read the source and import nothing"


def _composed(conf: Path, overrides: Sequence[str]) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = [f"hydra.searchpath=[{conf}]", *OWN, *overrides]
        config = compose("train", chosen, return_hydra_config=True)
    config.hydra.runtime.output_dir = "outputs/run"
    HydraConfig.instance().set_config(config)
    return config


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.width=0", "model.width=0: must be at least 1 and at most 512"),
        (
            "model.width=wide",
            "model.width=wide: expected a whole number, got 'wide'; for example",
        ),
        ("model.pooling=mena", "model.pooling=mena: did you mean mean?"),
        ("+model.widht=3", "model.widht: nothing reads it, OwnNet has no widht; did you mean model.width?"),
        ("data.shade=1", "data.shade=1: must be at least 0 and below 1"),
        ("+data.shad=0.1", "data.shad: nothing reads it, OwnData has no shad; did you mean data.shade?"),
        ("data.batch_size=0", "data.batch_size=0: must be at least 1"),
        ("data.num_classes=3", "data.num_classes=3: data=own_data has 2 classes; set data.num_classes=2 or"),
        (
            "data.val_size=100",
            "data.val_size=100: choose 0 to 99 of the 100 training images",
        ),
        ("optim.lr=0", "optim.lr=0: must be above 0"),
        (
            "+optim.warm_step=1",
            "optim.warm_step: nothing reads it, OwnSGD has no warm_step; did you",
        ),
        ("~optim.lr", "optim.lr: missing (OwnSGD requires it); set optim.lr=…"),
    ],
)
def test_a_mistake_in_parts_of_ones_own_is_one_line(parts: Path, override: str, line: str) -> None:
    problems = list(find_problems(_composed(parts, [override])))
    assert len(problems) == 1, problems
    assert problems[0].startswith(line)


def test_parts_of_ones_own_are_not_refused(parts: Path) -> None:
    assert list(find_problems(_composed(parts, ["model.width=64", "optim.warm_steps=5"]))) == []
