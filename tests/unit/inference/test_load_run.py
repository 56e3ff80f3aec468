"""Tests that networks loaded from run folders reproduce the runs' test results exactly."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import DENSE_MODELS, EXTRA_MODELS, Compose, options
from omegaconf import OmegaConf

from project.datamodules.image_folder import ImageFolder
from project.errors import DataError, InputError
from project.inference.evaluate.forward import ForwardResult, run_forward
from project.inference.load_run import load_run
from project.inference.run_config import read_config
from project.runs.run_folder import RunFolder
from project.train import train

Make = Callable[..., RunFolder]
SHORT = (
    *("data.batch_size=16", "data.eval_batch_size=8", "trainer.max_epochs=1", "trainer.accelerator=cpu"),
    *("logger=none", "~callbacks.progress"),
)
TINY = ("data=synthetic", "data.train_size=32", "data.val_size=8", "data.test_size=21", *SHORT)


@pytest.fixture
def make(composed: Compose, tmp_path: Path) -> Make:
    """Return a function that trains a small run and moves its folder."""

    def trained(*overrides: str, name: str = "run", base: tuple[str, ...] = TINY) -> RunFolder:
        made = tmp_path / "made" / name
        config = composed(*base, *overrides, run=made)
        (made / ".hydra").mkdir(parents=True)
        OmegaConf.save(config, made / ".hydra" / "config.yaml")
        train(config)
        return RunFolder(shutil.move(made, tmp_path / "moved" / name))

    (tmp_path / "moved").mkdir()
    return trained


def repeat(run: RunFolder, split: str = "test", **options: str) -> ForwardResult:
    trained = load_run(run, **options)
    return run_forward(trained, split, trained.config["tta"])


@pytest.mark.slow
def test_evaluation_equals_the_runs_test_for_every_network(make: Make, tmp_path: Path) -> None:
    models = [name for name in options("model") if name not in EXTRA_MODELS | DENSE_MODELS]
    assert len(models) >= 10
    for model in models:
        run = make(f"model={model}", name=model)
        own, again = run.read_status()["metrics"], repeat(run)
        assert (again.accuracy, again.loss) == (own["test/acc"], own["test/loss"]), model
        assert len(again.predictions.labels) == 21
        assert again.predictions.is_correct.double().mean().item() == pytest.approx(again.accuracy)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["callbacks.ema.decay=0.9"],
        ["trainer.precision=bf16-mixed", "channels_last=true", "model=cnn"],
        ["trainer.precision=bf16-true"],
        ["trainer.precision=64-true"],
        ["tta=flip_translate"],
        ["tta=selective"],
        ["data.val_size=0"],
        ["loss=mse"],
        ["trainer.limit_test_batches=2"],
        ["data.mean=[0.4]", "data.std=[0.2]", "data.num_classes=2", "trainer.overfit_batches=1"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_evaluation_equals_the_runs_test_for_all_settings(make: Make, overrides: list[str]) -> None:
    run = make("model=mlp", *overrides)
    own, again = run.read_status()["metrics"], repeat(run)
    assert (again.accuracy, again.loss) == (own["test/acc"], own["test/loss"])
    assert len(again.predictions.labels) == own["test/images"]


def test_compiled_run_is_evaluated_without_compilation(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    run = make("model=mlp", "compile=true")
    own, again = run.read_status()["metrics"], repeat(run)
    assert len(compiled) == 1
    assert (again.accuracy, again.loss) == (own["test/acc"], own["test/loss"])


def test_evaluation_equals_the_test_of_two_ranks(make: Make) -> None:
    run = make("model=mlp", "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")
    assert run.read_status()["ranks"] == 2
    own, again = run.read_status()["metrics"], repeat(run)
    assert again.accuracy == own["test/acc"]
    assert again.loss == pytest.approx(own["test/loss"], rel=1e-6)  # different order of summation


def test_validation_and_training_images_are_ordered_and_not_augmented(make: Make) -> None:
    run = make("model=mlp", "augment=affine")
    own = run.read_status()["metrics"]
    val, train = repeat(run, "val"), repeat(run, "train")
    assert (val.accuracy, val.loss) == (own["val/acc"], own["val/loss"])
    assert len(val.rows) == 8
    assert len(train.rows) == 24
    assert sorted([*val.rows.tolist(), *train.rows.tolist()]) == list(range(32))
    assert train.rows.tolist() == sorted(train.rows.tolist())
    trained = load_run(run)
    trained.datamodule.setup("fit")
    assert torch.equal(train.predictions.labels, trained.datamodule.subset("train").images.labels[train.rows])
    loader = trained.datamodule.evaluation_loader("train")
    with torch.inference_mode():
        logits = torch.cat([trained.module(images) for images, _ in loader])
    torch.testing.assert_close(logits.softmax(1), train.predictions.probabilities)


def test_streamed_images_are_evaluated(make: Make, image_folder: Path) -> None:
    places = ("data=image_folder", f"data.path={image_folder}", "data.image_cache=null")
    run = make("model=mlp", *places, "data.memory_budget_mb=0", "data.val_size=9", base=SHORT)
    own, again = run.read_status()["metrics"], repeat(run)
    assert (again.accuracy, again.loss) == (own["test/acc"], own["test/loss"])
    trained = load_run(run)
    trained.datamodule.setup("fit")
    files = trained.datamodule.files("val")
    labels = trained.datamodule.subset("val").images.labels[trained.datamodule.subset("val").rows]
    assert files is not None
    assert [Path(file).parent.name for file in files] == [trained.class_names[label] for label in labels]


def test_missing_or_damaged_parts_of_a_run_are_reported(make: Make, tmp_path: Path) -> None:
    run = make("model=mlp", "data.val_size=0")
    with pytest.raises(InputError, match=r"^split=val: the data has no such images .*data\.val_size=0"):
        repeat(run, "val")
    with pytest.raises(InputError, match=r"best\.ckpt is missing.*; there is weights=last"):
        load_run(run, "best")
    other = make("model=mlp", "model.widths=[7]", name="other")
    with pytest.raises(InputError, match=r"^weights=.*last\.ckpt: from another network"):
        load_run(run, str(other.last_checkpoint))
    whole = run.config_file.read_text()
    for old, new, what in (
        (whole, "a: 1\n", "task is missing"),
        ("num_classes: 10", "num_classes: ${nothing}", "Interpolation key 'nothing' not found"),
        ("num_classes: 10", "num_classes: ten", r"data\.num_classes is ten"),
        ("_target_: project.datamodules", "target: project.datamodules", r"data\._target_ is null"),
    ):
        assert old in whole
        run.config_file.write_text(whole.replace(old, new))
        with pytest.raises(InputError, match=rf"config\.yaml is damaged \({what}"):
            load_run(run)


@pytest.mark.slow
def test_a_split_with_training_images_is_refused(make: Make, image_folder: Path) -> None:
    places = ("data=image_folder", f"data.path={image_folder / 'train'}", "data.image_cache=null")
    run = make("model=mlp", *places, "data.val_size=9", base=SHORT)
    load_run(run, data=["data.split_seed=0"]).datamodule  # noqa: B018 (unchanged)
    for word in ("split_seed=1", "test_size=5", "val_size=0", "folds=3"):
        with pytest.raises(InputError, match=rf"^data\.{word}: the run had .* trained on would be tested"):
            load_run(run, data=[f"data.{word}"]).datamodule  # noqa: B018
    other = load_run(run, data=[f"data.path={image_folder / 'test'}", "data.test_size=6"]).datamodule
    other.setup("test")
    assert other.count("test") == 6


def test_renamed_classes_are_reported(make: Make, image_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(image_folder, tmp_path / "photos")
    run = make("model=mlp", "data=image_folder", f"data.path={folder}", "data.image_cache=null", base=SHORT)
    for split in ("train", "test"):
        (folder / split / "cat").rename(folder / split / "aardvark")
    with pytest.raises(InputError, match=r"^data\.path=.*photos: .* class 0 is aardvark \(expected ant\)"):
        load_run(run).datamodule  # noqa: B018
    assert run.last_checkpoint is not None
    saved = torch.load(run.last_checkpoint, weights_only=True)["ImageFolder"]
    resumed = ImageFolder(str(folder), input_shape=(3, 12, 10), num_classes=3)
    with pytest.raises(InputError, match=r"class 0 is aardvark \(expected ant\); .* or start a new run"):
        resumed.load_state_dict(saved)
    for split in ("train", "test"):
        (folder / split / "aardvark").rename(folder / split / "cat")
    del resumed.class_names
    resumed.load_state_dict(saved)
    assert resumed.mean == saved["mean"]


def test_all_images_of_another_folder_are_tested(make: Make, image_folder: Path, tmp_path: Path) -> None:
    run = make(
        "model=mlp", "data=image_folder", f"data.path={image_folder}", "data.image_cache=null", base=SHORT
    )
    names = load_run(run).class_names
    other = tmp_path / "others"
    shutil.copytree(image_folder / "test" / names[-1], other / names[-1])  # only one class
    again = repeat(run, data=[f"data.path={other}"])
    files = list((other / names[-1]).iterdir())
    assert again.predictions.labels.tolist() == [len(names) - 1] * len(files)
    shutil.copytree(other / names[-1], other / "unknown")
    with pytest.raises(DataError, match=r"unknown is none of the classes ant, bee"):
        repeat(run, data=[f"data.path={other}"])


def test_a_runs_task_is_read_with_references_to_its_parts(make: Make) -> None:
    # A copy of the group instead would load pretrained weights that the group no longer names.
    task = read_config(make("model=mlp"))["task"]
    assert (task["network"], task["optimizer"], task["tta"]) == ("${model}", "${optim}", "none")
