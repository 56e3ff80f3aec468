"""Checks of LightningModules without this project's base classes, read from their sources."""

from pathlib import Path

import pytest
from conftest import Compose
from omegaconf import open_dict

from project.config.derived_values import complete
from project.config.logged_metrics import logged_metrics, methods_of
from project.config.validation import find_problems
from project.train import train

ENCODER = ("task._target_=user_modules.AutoEncoder", "data._target_=user_modules.VectorData")
GAN = ("task._target_=user_modules.GAN", "data._target_=user_modules.TrainingData")
SILENT = ("task._target_=user_modules.SilentModule", "data._target_=user_modules.VectorData")


def problems_of(composer: Compose, *overrides: str) -> list[str]:
    config = composer("task=custom", "data.batch_size=8", *overrides)
    complete(config)
    return list(find_problems(config))


def test_logged_names_are_read_with_their_methods() -> None:
    encoder = logged_metrics("user_modules.AutoEncoder")
    assert encoder.complete
    assert dict(encoder.methods) == {
        "train_loss": {"training_step"},
        "val_loss": {"validation_step"},
        "test_loss": {"test_step"},
    }
    assert set(logged_metrics("user_modules.GAN").methods) == {"generator_loss", "critic_loss"}
    assert not logged_metrics("user_modules.SilentModule").complete
    assert not logged_metrics("nowhere.Module").complete


def test_inherited_methods_are_found() -> None:
    found = methods_of("user_modules.VectorData")
    assert found is not None
    assert {"train_dataloader", "val_dataloader", "test_dataloader"} <= found
    assert methods_of("nowhere.Data") is None


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (ENCODER, "monitor=val/acc: AutoEncoder logs val_loss, train_loss; set monitor=val_loss mode=min"),
        ((*ENCODER, "monitor=val_los", "mode=min"), "did you mean val_loss?"),
        (
            (*ENCODER[:1], *GAN[1:], "monitor=val_loss", "mode=min"),
            "monitor=val_loss: TrainingData has no val_dataloader; define one, or monitor another metric",
        ),
        (
            (*ENCODER, "monitor=val_loss", "mode=min", "trainer.limit_val_batches=0"),
            "monitor=val_loss: trainer.limit_val_batches=0 skips validation; monitor another metric",
        ),
        (
            (*ENCODER[:1], "data._target_=user_datamodules.NoArgumentDataModule", "monitor=train_loss"),
            "user_datamodules.NoArgumentDataModule: NoArgumentDataModule has no train_dataloader; define one",
        ),
        (GAN, "monitor=val/acc: GAN logs critic_loss, generator_loss; set monitor=critic_loss mode=min"),
    ],
)
def test_a_missing_metric_or_loader_is_one_line(
    composer: Compose, overrides: tuple[str, ...], line: str
) -> None:
    found = [one for one in problems_of(composer, *overrides) if "data.batch_size" not in one]
    assert found
    assert line in found[0]


@pytest.mark.parametrize(
    "overrides",
    [
        (*ENCODER, "monitor=val_loss", "mode=min"),
        (*ENCODER, "monitor=train_loss_epoch", "mode=min"),
        (*ENCODER, "monitor=val_loss/dataloader_idx_0", "mode=min"),
        (*GAN, "monitor=generator_loss", "mode=min"),
        (*SILENT, "monitor=anything"),
    ],
)
def test_logged_and_unknown_metrics_are_accepted(composer: Compose, overrides: tuple[str, ...]) -> None:
    assert problems_of(composer, *overrides) == []


@pytest.mark.parametrize("without", [(), ("~callbacks.early_stopping",)])
def test_a_metric_that_only_training_can_check_is_one_line(
    composer: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str], without: tuple[str, ...]
) -> None:
    config = composer(
        *("task=custom", "data.batch_size=8", *SILENT, "monitor=nope", "trainer.max_epochs=1", *without),
        *("trainer.accelerator=cpu", "logger=none", "~callbacks.progress"),
        run=tmp_path / "run",
    )
    complete(config)
    (tmp_path / "run").mkdir()
    with open_dict(config):
        del config["hydra"]
    with pytest.raises(SystemExit, match="2"):
        train(config)
    line = (
        "error: monitor=nope: the task has not logged it; it logs check_loss, fit_loss; set monitor and mode"
    )
    assert line in capsys.readouterr().err
