"""Runs that meet NaN: what their folder keeps, and the replay that names the layer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose
from omegaconf import OmegaConf
from small_training import make_data, make_module, make_trainer
from torch import Tensor, nn

from project.callbacks.nan_capture import NanCapture
from project.errors import InputError, NonFiniteError
from project.inference.replay.command import replay, search
from project.inference.replay.options import Options, check_run
from project.modules.nan_search import first_non_finite_weight, last_non_finite_gradient, watch_outputs
from project.runs.run_folder import RunFolder
from project.train import train

TINY = (
    *("data=synthetic", "data.train_size=64", "data.val_size=16", "data.test_size=16", "data.batch_size=16"),
    *("trainer.accelerator=cpu", "logger=none", "~callbacks.progress", "model=mlp", "optim=sgd"),
    *("model.widths=[8]", "trainer.log_every_n_steps=2"),
)


class Root(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.sqrt()


def test_the_first_layer_whose_output_is_not_finite_is_named() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Identity(), Root()), nn.Linear(4, 2))
    with watch_outputs(network) as found:
        network(torch.randn(8, 4)).sum().backward()
    assert found[0] == ("1.1", "Root", True)
    assert [one.layer for one in found] == ["1.1", "1", "2"]
    assert not found[2].has_finite_inputs
    # The backward pass starts at the last layer, whose bias has a finite gradient.
    assert last_non_finite_gradient(network) == "2.weight"
    assert first_non_finite_weight(network) is None
    with watch_outputs(network) as found:
        network.eval()(torch.randn(8, 4))
    assert not found


class PoisonedLoss(nn.CrossEntropyLoss):
    """Cross-entropy that is NaN, with finite gradients, for batches of 4 images."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        loss = super().forward(logits, targets)
        return loss + torch.nan if len(targets) == 4 else loss


@pytest.mark.parametrize("batches_per_hook", [1, None])
def test_the_batch_and_the_weights_of_a_nan_are_kept(tmp_path: Path, batches_per_hook: int | None) -> None:
    module, data = make_module(), make_data()
    module.loss = PoisonedLoss()
    trainer = make_trainer(
        tmp_path,
        [NanCapture(str(tmp_path / "nan"))],
        enable_checkpointing=False,
        batches_per_hook=batches_per_hook,
        log_every_n_steps=100,
    )
    with pytest.raises(NonFiniteError, match="train/loss is nan"):
        trainer.fit(module, data)
    report = json.loads((tmp_path / "nan" / "report.json").read_text())
    # 100 training images in batches of 16: the last of the 7 batches has 4.
    assert {key: report[key] for key in ("epoch", "batch", "step", "checkpoint", "non_finite_weight")} == {
        "epoch": 0,
        "batch": 6,
        "step": 7,
        "checkpoint": None,
        "non_finite_weight": None,
    }
    assert report["layer"] == {"layer": "loss", "kind": "PoisonedLoss", "has_finite_inputs": True}
    images, targets = torch.load(tmp_path / "nan" / "batch.pt", weights_only=True)
    expected = list(data.train_dataloader())[6]
    assert torch.equal(images, expected[0])
    assert torch.equal(targets, expected[1])
    weights = torch.load(tmp_path / "nan" / "weights.pt", weights_only=True)
    assert weights.keys() == module.state_dict().keys()


def test_a_training_that_stays_finite_keeps_nothing(tmp_path: Path) -> None:
    make_trainer(tmp_path, [NanCapture(str(tmp_path / "nan"))], enable_checkpointing=False).fit(
        make_module(), make_data()
    )
    assert not (tmp_path / "nan").exists()


@pytest.fixture
def diverged(composed: Compose, tmp_path: Path) -> Callable[..., RunFolder]:
    """Return a function that trains a run which must stop with NaN, and returns its folder."""

    def make(*overrides: str) -> RunFolder:
        config = composed(*TINY, *overrides, run=tmp_path / "run")
        (tmp_path / "run" / ".hydra").mkdir(parents=True)
        OmegaConf.save(config, tmp_path / "run" / ".hydra" / "config.yaml")
        with pytest.raises(SystemExit) as stopped:
            train(config)
        assert stopped.value.code == NonFiniteError.exit_code
        return RunFolder(tmp_path / "run")

    return make


def report_of(run: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.path / "nan" / "report.json").read_text())
    return found


def test_a_replay_from_the_start_names_the_layer(
    diverged: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    run = diverged("optim.lr=1e30", "trainer.max_epochs=2")
    assert report_of(run)["checkpoint"] is None
    assert report_of(run)["layer"] is None, "the weights are not finite any more"
    assert replay(check_run(Options(run=str(run.path)))) == 0
    found = report_of(run)["replay"]
    # The first step is finite, with weights of about 1e30; the logits of the second batch overflow.
    assert (found["epoch"], found["batch"], found["step"]) == (0, 1, 1)
    assert "is the first whose output is not finite" in capsys.readouterr().out
    weights = torch.load(run.path / "nan" / "weights.pt", weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())


def test_a_replay_from_a_checkpoint_finds_the_step_of_the_run(diverged: Callable[..., RunFolder]) -> None:
    run = diverged(
        *("optim.lr=0.01", "trainer.max_epochs=5", "scheduler=multistep"),
        *("scheduler.milestones=[2]", "scheduler.gamma=1e32"),
    )
    report = report_of(run)
    assert (report["checkpoint"], report["checkpoint_step"], report["epoch"]) == ("last.ckpt", 6, 2)
    finding = search(run, report["step"])
    assert finding is not None
    assert (finding.epoch, finding.batch) == (2, report["batch"])
    assert finding.output is not None
    # The replay repeats the run's batch bit by bit.
    images, _ = torch.load(run.path / "nan" / "batch.pt", weights_only=True)
    assert images.shape[0] == 16


def test_a_run_without_nan_is_refused(tmp_path: Path, composed: Compose) -> None:
    (tmp_path / "run").mkdir()
    OmegaConf.save(composed(*TINY), tmp_path / "run" / "config.yaml", resolve=True)
    with pytest.raises(InputError, match=r"nan/report\.json is missing"):
        check_run(Options(run=str(tmp_path / "run")))
