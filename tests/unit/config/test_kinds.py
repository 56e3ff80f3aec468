"""Classes of another kind than their group is for are refused, from the sources where these say it."""

from typing import Any

import pytest
from conftest import CONF, Compose, options
from omegaconf import OmegaConf

from project.config.instantiate import build
from project.config.validation import find_problems
from project.config.validation.groups import WANTED, wrong_kinds
from project.errors import InputError

LIGHTNING = ("One", "Two", "Three", "Four", "Five", "Six", "Derived", "Mixed")
OTHERS = (
    *("Images", "Steps", "Descent", "Rows", "Net", "Deeper", "Data", "Hidden", "Nothing"),
    *("make", "number"),
)
OWN = """
import lightning as L
import lightning.pytorch as pl
import torch
from lightning import LightningModule as Base
from lightning.pytorch import (
    LightningDataModule,  # with a comment
    LightningModule,
)
from torch import nn
from torch.optim import SGD, Optimizer
from torch.utils.data import Dataset
from project.datamodules.synthetic import Synthetic
from project.modules.classifier import ImageClassifier
from project.modules.networks.cnn import CNN3x3

ALIAS = L.LightningModule


class Mixin:
    pass


class One(L.LightningModule): pass
class Two(pl.LightningModule): pass
class Three(LightningModule): pass
class Four(Base): pass
class Five(
    Mixin,
    LightningModule,
):
    pass
class Six(ImageClassifier):
    def __init__(self):
        super().__init__(nn.Identity())
class Derived(Five): pass
class Mixed(Mixin, L.LightningModule, nn.Module): pass
class Images(LightningDataModule): pass
class Steps(Optimizer): pass
class Descent(SGD): pass
class Rows(Dataset): pass
class Net(nn.Module): pass
class Deeper(Mixin, CNN3x3):
    def __init__(self):
        super().__init__([1, 28, 28], 10)
class Data(Synthetic):
    def __init__(self):
        super().__init__(input_shape=[1, 8, 8], num_classes=3, train_size=10, test_size=10)
class Hidden(ALIAS): pass
class Nothing: pass


def make():
    return One()


def number():
    return 5
"""


@pytest.fixture(scope="module", autouse=True)
def _own(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_kinds.py").write_text(f"{OWN}\n\nCONFIG_TARGETS = {(*LIGHTNING, *OTHERS)}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


@pytest.mark.parametrize(
    ("group", "name", "got"),
    [
        *(("model", name, "LightningModule") for name in LIGHTNING),
        ("loss", "One", "LightningModule"),
        ("loss", "Steps", "Optimizer"),
        ("model", "Images", "LightningDataModule"),
        ("model", "Data", "ImageDataModule"),
        ("model", "Steps", "Optimizer"),
        ("model", "Descent", "Optimizer"),
        ("model", "Rows", "Dataset"),
        ("data", "One", "LightningModule"),
        ("data", "Net", "nn.Module"),
        ("data", "Rows", "Dataset"),
        ("task", "Net", "nn.Module"),
        ("task", "Images", "LightningDataModule"),
    ],
)
def test_sources_tell_of_another_kind(group: str, name: str, got: str) -> None:
    key = f"{group}._target_"
    (line,) = wrong_kinds({key: f"own_kinds.{name}"})
    told = f"{key}=own_kinds.{name}: no class for {group} (expected {WANTED[group]}, got {got}); name a "
    assert line.startswith(told)


def test_the_right_kinds_and_what_sources_do_not_say_are_left_to_be_made() -> None:
    names = ("Net", "Deeper", "Hidden", "Nothing", "make", "Absent")
    assert not [
        *wrong_kinds({"task._target_": "own_kinds.One"}),
        *wrong_kinds({"data._target_": "own_kinds.Images"}),
    ]
    assert not [line for name in names for line in wrong_kinds({"model._target_": f"own_kinds.{name}"})]
    assert not [*wrong_kinds({"data._target_": "own_kinds.Data"})]


@pytest.mark.parametrize("group", WANTED)
def test_every_class_of_the_configuration_is_of_its_groups_kind(composer: Compose, group: str) -> None:
    for option in options(group):
        written = OmegaConf.load(CONF / group / f"{option}.yaml")
        if "_target_" not in written:  # stated by an option that this one extends
            written = composer(f"{group}={option}")[group]
        target = OmegaConf.to_container(written)["_target_"]
        assert not [*wrong_kinds({f"{group}._target_": target})], option


def test_nothing_else_is_said_of_a_class_of_another_kind(composer: Compose) -> None:
    config = composer("model=mlp", "model._target_=project.modules.classifier.ImageClassifier")
    (line,) = find_problems(config)
    assert "(expected nn.Module, got LightningModule); name a torch.nn.Module" in line


@pytest.mark.parametrize(
    ("group", "name", "got"),
    [
        *(("model", name, "LightningModule") for name in ("One", "Six", "Mixed", "Hidden", "make")),
        ("model", "number", "int"),
        ("model", "Nothing", "Nothing"),
        ("loss", "make", "LightningModule"),
        ("loss", "Nothing", "Nothing"),
    ],
)
def test_what_is_made_is_looked_at_too(group: str, name: str, got: str) -> None:
    told = rf"{group}\._target_=own_kinds\.{name}: no class for {group} \(expected .*, got {got}\); name a"
    with pytest.raises(InputError, match=told):
        build({group: {"_target_": f"own_kinds.{name}"}}, group)


def test_data_that_is_no_data_module_is_refused_when_it_is_made() -> None:
    for name in ("Net", "make"):
        told = rf"data\._target_=own_kinds\.{name}: no class for data \(expected LightningDataModule, got"
        with pytest.raises(InputError, match=told):
            build({"data": {"_target_": f"own_kinds.{name}"}}, "data")


def test_the_right_kinds_are_made() -> None:
    for group, name in (("model", "Net"), ("model", "Deeper"), ("data", "Data"), ("data", "Images")):
        made = build({group: {"_target_": f"own_kinds.{name}"}}, group)
        assert type(made).__name__ == name
