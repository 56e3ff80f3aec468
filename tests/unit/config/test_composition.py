"""Everything in conf/ goes with everything else."""

import re
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from conftest import CONF, DENSE_MODELS, EXTRA_MODELS, PUBLISHED, Compose, options
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from PIL import Image

from project.config.instantiate import build, build_task, resolve
from project.config.validation import find_problems
from project.config.validation.network import try_task
from project.errors import DataError, InputError
from project.modules.optim.training_length import TrainingLength

MODELS = [name for name in options("model") if name not in EXTRA_MODELS | DENSE_MODELS]
# Data sets with tests of their own.
OTHER_TASKS = ("csv", "diabetes", "digit_masks", "image_masks", "multi_mnist", "tabular", "task_loaders")
DATA = [name for name in options("data") if name not in {*PUBLISHED, *OTHER_TASKS}]
OPTIMIZERS, SCHEDULES = options("optim"), options("scheduler")


def test_conf_holds_what_these_tests_expect() -> None:
    # A test that discovers files asserts how many: one that sees none must not pass.
    assert set(options("model")) - set(MODELS) == EXTRA_MODELS | DENSE_MODELS
    assert set(options("data")) - set(DATA) == {*PUBLISHED, *OTHER_TASKS}
    assert (len(MODELS), len(DATA), len(OPTIMIZERS), len(SCHEDULES)) == (10, 5, 8, 9)
    assert len(options("experiment")) == 17
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


def sections(composed: Compose, group: str, names: list[str]) -> dict[str, DictConfig]:
    """Return the section of each option of a group, with interpolations to other sections."""
    # An option that overrides other groups could not be combined after composition.
    assert not [name for name in names if "override /" in (CONF / group / f"{name}.yaml").read_text()]
    return {name: composed(f"{group}={name}")[group] for name in names}


@pytest.mark.slow
def test_every_model_trains_a_step_on_every_data_set(
    composed: Compose, data_overrides: dict[str, list[str]]
) -> None:
    models, seen = sections(composed, "model", MODELS), 0
    for data in DATA:
        config = composed(f"data={data}", "data.batch_size=8", *data_overrides[data])
        assert instantiate(config.data, _convert_="all").num_classes == config.data.num_classes
        for model, config.model in models.items():
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
            now = module.network.parameters()
            assert trainer.global_step == 1
            assert not all(map(torch.equal, before, now)), (model, data)
            assert torch.isfinite(trainer.callback_metrics["train/loss"])
            seen += 1
    assert seen == 10 * 5


@pytest.mark.slow
def test_every_optimizer_takes_every_network_and_schedule(composed: Compose) -> None:
    config = composed("data=synthetic")
    optimizers, schedules = (
        sections(composed, "optim", OPTIMIZERS),
        sections(composed, "scheduler", SCHEDULES),
    )
    networks, seen = [], 0
    for config.model in sections(composed, "model", MODELS).values():
        networks.append(instantiate(config.model, _convert_="all"))
    for config.optim in optimizers.values():
        for number, config.scheduler in enumerate(schedules.values()):
            values = resolve(config)
            make_optimizer, make_schedule = build(values, "optim"), build(values, "scheduler")
            for network in networks if number == 0 else networks[:1]:
                optimizer = make_optimizer([{"params": list(network.parameters())}])
                schedule = make_schedule(optimizer, TrainingLength(steps=100, steps_per_epoch=10))
                assert schedule["scheduler"].optimizer is optimizer
                assert schedule["interval"] in ("step", "epoch")
                seen += 1
    assert seen == 8 * (10 + 8)


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
    assert re.search(
        r"[Tt]est (accuracy|mean average precision|mean absolute error|loss|miou|knn_acc)", header
    )


def test_no_option_restates_what_another_states(composed: Compose) -> None:
    config = composed("data=synthetic", "data.input_shape=[3,20,24]", "data.num_classes=7")
    for config.model in sections(composed, "model", MODELS).values():
        assert OmegaConf.to_container(config.model)["num_classes"] == "${data.num_classes}"
        assert list(config.model.input_shape) == [3, 20, 24]
        assert config.model.num_classes == config.loss.num_classes == 7


def write_table(folder: Path) -> list[str]:
    """Write a table of images and features, and return the overrides that select it."""
    rows = []
    for i in range(60):
        Image.fromarray(np.full((28, 28), i, dtype=np.uint8)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{i % 2},{int(i % 3 == 0)},k{i % 3},{i / 7}")
    (folder / "t.csv").write_text("\n".join(["image,cat,dog,kind,weight", *rows]))
    return [f"data.table={folder / 't.csv'}"]


@pytest.mark.parametrize("data", ["csv", "tabular"])
@pytest.mark.parametrize(
    ("task", "columns", "outputs"),
    [("classification", "kind", 3), ("multilabel", "[cat,dog]", 2), ("regression", "weight", 1)],
)
def test_every_task_trains_on_tables(
    composer: Compose, tmp_path: Path, data: str, task: str, columns: str, outputs: int
) -> None:
    features = ["data.feature_columns=[cat,weight]"] if (task, data) == ("classification", "tabular") else []
    features = ["data.feature_columns=[weight]"] if (task, data) == ("multilabel", "tabular") else features
    features = ["data.feature_columns=[cat,dog]"] if (task, data) == ("regression", "tabular") else features
    config = composer(
        f"task={task}",
        f"data={data}",
        "model=mlp",
        f"data.label_columns={columns}",
        "mode=" + best(task),
        *write_table(tmp_path),
        *features,
    )
    assert list(find_problems(config)) == []
    assert config.data.num_classes == config.model.num_classes == outputs
    assert config.monitor == {"multilabel": "val/map", "regression": "val/mae"}.get(task, "val/acc")
    with open_dict(config):
        del config["hydra"]
    plain = resolve(config)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = build_task(plain)
    try_task(module, plain)
    trainer.fit(module, build(plain, "data"))
    assert torch.isfinite(trainer.callback_metrics[config.monitor])


def test_missing_images_of_a_table_are_found_before_a_run(composer: Compose, tmp_path: Path) -> None:
    config = composer("model=mlp", "data=csv", "data.label_columns=kind", *write_table(tmp_path))
    assert list(find_problems(config)) == []
    (tmp_path / "41.png").unlink()
    table = tmp_path / "t.csv"
    table.write_text(f"{table.read_text()}\n")  # another time of change
    with pytest.raises(DataError, match=r"1 of 60 images are missing \(row 42: .*41\.png\)"):
        list(find_problems(config))


def best(task: str) -> str:
    return "min" if task == "regression" else "max"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            "task=multilabel",
            r"data=digits: does not fit the task \(expected several labels per input, got one",
        ),
        ("task=regression", r"data=digits: does not fit the task \(expected real values, got one class"),
        (
            "data=multi_mnist",
            r"data=multi_mnist: does not fit the task \(expected one class per input, got sev",
        ),
        ("data=diabetes task=regression mode=min", r"model\._target_=.*: needs images .*set model=mlp"),
        (
            "data=multi_mnist task=multilabel +data.sampler=balanced",
            r"data\.sampler=balanced: balances classes .*got several labels per input",
        ),
        (
            "data=csv data.table=none.csv data.label_columns=a",
            r"data\.table=none\.csv: does not exist; give a CSV, \.npz or \.npy file",
        ),
        ("loss.class_weights=[1,2]", r"loss\.class_weights=\[1, 2\]: 2 weights for data\.num_classes=10"),
        ("loss.class_weights=balancd", r"loss\.class_weights='?balancd"),
    ],
)
def test_targets_that_do_not_fit_are_refused_before_torch(
    composer: Compose, overrides: str, line: str
) -> None:
    found: list[str] = []
    try:
        found += find_problems(composer(*overrides.split()))
    except InputError as error:
        found += str(error).splitlines()
    assert any(re.search(line, text) for text in found), found
