"""Tests of debug presets, `OverfitBatch` and the profiler."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose, options
from omegaconf import OmegaConf
from small_training import make_data, make_module, make_trainer
from user_modules import GAN, AutoEncoder, VectorData

from project.callbacks.overfit_batch import NotLearnedError, OverfitBatch, minimum_loss
from project.callbacks.profiler import StepProfiler
from project.config.validation import find_problems
from project.errors import InputError
from project.modules.losses import CrossEntropy
from project.modules.optim import schedules
from project.runs.run_folder import RunFolder
from project.train import train


@pytest.mark.slow
def test_debug_presets_pass_validation_and_use_their_own_folder(
    composer: Compose, image_folder: Path
) -> None:
    assert options("debug") == ["anomaly", "limit", "one_batch", "overfit"]
    assert options("profiler") == ["none", "simple", "torch"]
    finetune = ["experiment=finetune", f"data.path={image_folder}", "data.batch_size=16"]
    others = (finetune, ["profiler=torch"], ["loss=mse", "profiler=simple"], ["trainer=debug", *finetune])
    for preset, more in zip(options("debug"), others, strict=True):
        config = composer(f"debug={preset}", *more)
        assert list(find_problems(config)) == []
        assert config.hydra.run.dir.startswith("outputs/debug/")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            "profiler=torch callbacks.profiler.active=0",
            "callbacks.profiler.active=0: must be at least 1 and at most 100",
        ),
        (
            "profiler=torch callbacks.profiler.wait=x",
            "callbacks.profiler.wait=x: expected a whole number, got 'x'",
        ),
        (
            "profiler=torch +callbacks.profiler.activ=3",
            "callbacks.profiler.activ: nothing reads it, StepProfiler has no activ; did you mean "
            "callbacks.profiler.active?",
        ),
        ("debug=overfit callbacks.overfit.loss=0", "callbacks.overfit.loss=0: must be above 0"),
        ("callbacks.progress.every_epochs=0", "callbacks.progress.every_epochs=0: must be at least 1"),
        ("callbacks.freeze_backbone.epochs=-1", "callbacks.freeze_backbone.epochs=-1: must be at least 0"),
        ("callbacks.ema.decay=1.0", "callbacks.ema.decay=1.0: must be at least 0 and below 1"),
        ("callbacks.last.every_steps=-1", "callbacks.last.every_steps=-1: must be at least 0"),
        ("optim.layerwise_lr_decay=0", "optim.layerwise_lr_decay=0: must be above 0 and at most 1"),
    ],
)
def test_invalid_debug_options_are_reported_on_one_line(composer: Compose, overrides: str, line: str) -> None:
    assert list(dict.fromkeys(find_problems(composer(*overrides.split())))) == [line]


def test_debug_one_batch_runs_all_stages(composer: Compose, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    overrides = ("debug=one_batch", "profiler=simple", "model=mlp", "logger=none", "trainer.accelerator=cpu")
    config = composer(*overrides, f"paths.outputs={tmp_path}", run=folder)
    job = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    job.paths.run = str(folder)
    assert train(job) is not None
    status = RunFolder(folder).read_status()
    assert status["metrics"]["test/images"] <= 256
    assert (folder / "checkpoints" / "best.ckpt").exists()
    assert "run_training_batch" in (folder / "profile" / "fit-hooks.txt").read_text()


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfit_batch_stops_on_success_and_raises_otherwise(tmp_path: Path) -> None:
    def fit(lr: float, epochs: int) -> int:
        module = make_module()
        module.optimizer_factory = partial(torch.optim.Adam, lr=lr)
        module.scheduler_factory = schedules.constant
        options = {"overfit_batches": 1, "check_val_every_n_epoch": 300, "enable_checkpointing": False}
        trainer = make_trainer(tmp_path, [OverfitBatch()], max_epochs=epochs, **options)
        trainer.fit(module, make_data())
        return trainer.global_step

    assert fit(0.01, 200) < 200
    with pytest.raises(NotLearnedError, match=r"overfit failed: 3 steps changed .* \d+% correct.*optim\.lr"):
        fit(1e-6, 3)


@pytest.mark.filterwarnings("ignore:You requested to overfit", "ignore:.*have no `validation_step`")
def test_overfit_batch_judges_tasks_without_accuracy_by_their_loss(tmp_path: Path) -> None:
    def fit(module: Any, callback: OverfitBatch, epochs: int) -> int:
        options = {"overfit_batches": 1, "limit_val_batches": 0, "enable_checkpointing": False}
        trainer = make_trainer(tmp_path, [callback], max_epochs=epochs, **options)
        trainer.fit(module, VectorData())
        return trainer.global_step

    torch.manual_seed(0)
    assert fit(AutoEncoder(lr=0.01), OverfitBatch(loss=0.9), 300) < 300
    with pytest.raises(
        NotLearnedError, match=r"from .* to [\d.]+ \(expected a loss below 1e-09\); raise the l"
    ):
        fit(AutoEncoder(), OverfitBatch(loss=1e-9), 3)
    with pytest.raises(InputError, match=r"debug=overfit: training_step of GAN returns no loss"):
        fit(GAN(), OverfitBatch(), 3)


def test_minimum_loss_with_label_smoothing() -> None:
    loss = CrossEntropy(4, label_smoothing=0.2)
    best = torch.tensor([[math.log(0.85), *[math.log(0.05)] * 3]])  # the smoothed label
    assert minimum_loss(loss) == pytest.approx(loss(best, torch.tensor([0])).item())
    assert minimum_loss(CrossEntropy(4)) == 0


class StopStepRecorder(StepProfiler):
    """Records the step after which the profiler stops."""

    stopped_at = 0

    def _stop(self) -> None:
        self.stopped_at = self.stopped_at or self._seen
        super()._stop()


@pytest.mark.parametrize("batches_per_hook", [None, 1])
def test_trace_holds_the_configured_steps(tmp_path: Path, batches_per_hook: int | None) -> None:
    profiling = StopStepRecorder(str(tmp_path / "profile"), wait=3, warmup=1, active=2)
    trainer = make_trainer(
        tmp_path, [profiling], enable_checkpointing=False, batches_per_hook=batches_per_hook
    )
    trainer.fit(make_module(), make_data())
    trace = json.loads((tmp_path / "profile" / "steps.pt.trace.json").read_text())
    events = [event.get("name", "") for event in trace["traceEvents"]]
    steps = {name for name in events if name.startswith("ProfilerStep#")}
    assert steps == {"ProfilerStep#4", "ProfilerStep#5"}
    assert sum(name == "aten::cross_entropy_loss" for name in events) == 2
    lines = (tmp_path / "profile" / "operators.txt").read_text().splitlines()
    assert lines[0].split() == ["operator", "calls", "CPU", "ms", "share"]
    assert any("convolution" in line for line in lines)
    assert max(map(len, lines)) <= 80
    assert [path.name for path in (tmp_path / "profile").glob(".*")] == []
    assert profiling.stopped_at == 6, "what follows costs nothing"


def test_training_shorter_than_the_profile_writes_a_trace(tmp_path: Path) -> None:
    profiling = StepProfiler(str(tmp_path), wait=50, warmup=1, active=3)
    trainer = make_trainer(tmp_path, [profiling], enable_checkpointing=False, max_steps=3, max_epochs=-1)
    trainer.fit(make_module(), make_data())
    assert (tmp_path / "steps.pt.trace.json").stat().st_size > 0
