"""Everything in conf/ goes with everything else."""

from itertools import product
from pathlib import Path

import lightning as L
import pytest
import torch
from conftest import CONF, EXTRA_MODELS, Compose, options
from hydra.utils import instantiate
from omegaconf import OmegaConf

from project.config.instantiate import build, build_task, resolve
from project.config.validation import find_problems
from project.modules.optim.training_length import TrainingLength

MODELS, DATA = [name for name in options("model") if name not in EXTRA_MODELS], options("data")
OPTIMIZERS, SCHEDULES = options("optim"), options("scheduler")


def test_conf_holds_what_these_tests_expect() -> None:
    # A test that discovers files asserts how many: one that sees none must not pass.
    assert set(options("model")) - set(MODELS) == EXTRA_MODELS
    assert (len(MODELS), len(DATA), len(OPTIMIZERS), len(SCHEDULES)) == (10, 5, 6, 9)
    assert len(options("experiment")) == 11
    assert (options("augment"), options("loss")) == (
        [
            *("affine", "airbench", "augmix", "crop_flip", "none", "progressive", "randaugment", "strong"),
            "trivialaugment",
        ],
        ["bce", "cross_entropy", "huber", "mse", "squared_error"],
    )


def test_the_help_names_every_group_in_80_columns() -> None:
    written = OmegaConf.to_container(OmegaConf.load(CONF / "hydra" / "default.yaml"))["help"]
    command = written["app_name"].removeprefix("${as_called:").removesuffix("}")
    text = written["template"].replace("${hydra.help.app_name}", command)
    groups = text.partition("groups:\n")[2].partition("\n\n")[0].splitlines()
    folders = {folder.name for folder in CONF.iterdir() if folder.is_dir()} - {"hydra"}
    assert {line.split()[0] for line in groups} == folders  # a new group needs its line in hydra.help
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.slow
def test_every_model_data_optimizer_and_schedule_compose_and_build(
    composed: Compose, data_overrides: dict[str, list[str]]
) -> None:
    # Sections of the configuration are files of their own: composing every pair and building every
    # combination of them covers the product without composing 2,700 times.
    networks, makers = {}, {}
    for model, data in product(MODELS, DATA):
        config = composed(f"model={model}", f"data={data}", *data_overrides[data])
        networks[model, data] = instantiate(config.model, _convert_="all")
        assert instantiate(config.data, _convert_="all").num_classes == config.data.num_classes
    for optimizer, schedule in product(OPTIMIZERS, SCHEDULES):
        config = OmegaConf.to_container(composed(f"optim={optimizer}", f"scheduler={schedule}"), resolve=True)
        makers[optimizer, schedule] = [build(config, section) for section in ("optim", "scheduler")]
    seen = 0
    for network in networks.values():
        for make_optimizer, make_schedule in makers.values():
            optimizer = make_optimizer([{"params": list(network.parameters())}])
            schedule = make_schedule(optimizer, TrainingLength(steps=100, steps_per_epoch=10))
            assert schedule["scheduler"].optimizer is optimizer
            assert schedule["interval"] in ("step", "epoch")
            seen += 1
    assert seen == 10 * 5 * 6 * 9


@pytest.mark.slow
def test_every_model_trains_a_step_on_every_data_set(
    composed: Compose, data_overrides: dict[str, list[str]]
) -> None:
    seen = 0
    for model, data in product(MODELS, DATA):
        config = composed(f"model={model}", f"data={data}", "data.batch_size=8", *data_overrides[data])
        module = build_task(resolve(config))
        before = [parameter.clone() for parameter in module.network.parameters()]
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=1,
            limit_val_batches=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, instantiate(config.data, _convert_="all"))
        moved = [
            not torch.equal(old, new) for old, new in zip(before, module.network.parameters(), strict=True)
        ]
        assert trainer.global_step == 1
        assert any(moved), (model, data)
        assert torch.isfinite(trainer.callback_metrics["train/loss"])
        seen += 1
    assert seen == 10 * 5


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_preset_passes_the_checks_and_says_how_it_was_measured(
    composer: Compose, experiment: str, image_folder: Path
) -> None:
    own = [f"data.path={image_folder}"] if experiment == "finetune" else []  # whose images the user gives
    config = composer(f"experiment={experiment}", *own)
    assert list(find_problems(config)) == []
    assert config.name == experiment
    header = (CONF / "experiment" / f"{experiment}.yaml").read_text().split("defaults:")[0]
    assert f"python scripts/train.py experiment={experiment}" in header
    assert "test accuracy" in header


def test_no_option_restates_what_another_states(composed: Compose) -> None:
    for model in MODELS:
        raw = OmegaConf.load(CONF / "model" / f"{model}.yaml")
        assert OmegaConf.to_container(raw, resolve=False)["num_classes"] == "${data.num_classes}"
        config = composed(
            f"model={model}", "data=synthetic", "data.input_shape=[3,20,24]", "data.num_classes=7"
        )
        assert list(config.model.input_shape) == [3, 20, 24]
        assert config.model.num_classes == config.loss.num_classes == 7
