"""Tests of the search for a learning rate and a batch size."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Compose
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from small_training import make_data, make_module, make_trainer

from project.config.instantiate import build, build_task, resolve
from project.config.validation import find_problems
from project.errors import InputError
from project.modules.optim import schedules
from project.runs.run_folder import RunFolder
from project.train import train
from project.training.tuning import batch_size
from project.training.tuning.batch_size import BatchSizeTrial, choose_batch_size, try_batch_sizes
from project.training.tuning.range_test import (
    LearningRateRamp,
    learning_rates,
    run_range_test,
    suggest_lr,
)


@pytest.mark.slow
def test_suggested_lr_trains_and_the_module_is_restored(tmp_path: Path) -> None:
    def makes_trainer(**options: Any) -> Any:
        options = {"max_epochs": 3, "enable_checkpointing": False, "log_every_n_steps": 50} | options
        return make_trainer(tmp_path, **options)

    module, data = make_module(), make_data()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    schedule = module.scheduler_factory
    found = run_range_test(module, data, makes_trainer, highest=100.0, repeats=2)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.scheduler_factory is schedule
    assert found.rates[0] == 1e-6
    assert found.has_diverged
    assert len(found.losses) == len(found.rates) < len(learning_rates(1e-6, 100.0))
    assert found.suggestion is not None
    reached = {}
    for rate in (found.suggestion, 1e-6):
        trained = make_module()
        trained.optimizer_factory = partial(torch.optim.SGD, lr=rate, momentum=0.9)
        trained.scheduler_factory = schedules.constant
        trainer = makes_trainer()
        trainer.fit(trained, data)
        reached[rate] = float(trainer.callback_metrics["train/loss"])
    assert reached[found.suggestion] < 0.8 * reached[1e-6]


def test_suggested_lr_is_that_of_the_steepest_fall() -> None:
    rates = learning_rates(1e-6, 10.0)
    assert (len(rates), rates[0], rates[-1]) == (176, 1e-6, pytest.approx(10.0))
    logs = np.log10(rates)
    falling = 0.3 + 2 / (1 + np.exp(6 * (logs + 2.5)))  # steepest at 10^-2.5
    rising = 3 * np.clip(logs + 1, 0, None) ** 2
    suggestion, smooth = suggest_lr(rates, (falling + rising).tolist())
    assert suggestion == pytest.approx(10**-2.5, rel=0.15)
    assert np.allclose(smooth[:50], 2.3, atol=0.01)
    noisy = [falling + rising + np.random.default_rng(seed).normal(0, 0.2, len(rates)) for seed in range(8)]
    found = [suggest_lr(rates, losses.tolist())[0] for losses in noisy]
    assert all(rate is not None and 10**-3 < rate < 10**-2 for rate in found)


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_no_lr_is_suggested_if_the_loss_does_not_fall(slope: float) -> None:
    rates = learning_rates(1e-6, 10.0)
    for seed in range(8):
        noise = np.random.default_rng(seed).normal(0, 0.2, len(rates))
        assert suggest_lr(rates, (1 + slope * np.arange(len(rates)) + noise).tolist())[0] is None
    assert suggest_lr(rates[:1], [1.0])[0] is None
    assert suggest_lr([], [])[0] is None


@pytest.mark.slow
def test_noisy_losses_give_similar_learning_rates_for_all_seeds(composed: Compose, tmp_path: Path) -> None:
    config = resolve(composed("experiment=diabetes"))
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        module, data = build_task(config), build(config, "data")
        found.append(run_range_test(module, data, partial(make_trainer, tmp_path)).suggestion)
    assert None not in found
    assert max(found) < 3 * min(found)


def test_each_repeat_of_the_range_test_starts_from_the_initial_weights(tmp_path: Path) -> None:
    module, data = make_module(), make_data()
    ramp = LearningRateRamp([0.1] * 3, repeats=2)
    module.scheduler_factory = schedules.constant
    seen: list[tuple[float, float]] = []

    class Recorder(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            first = next(pl_module.network.parameters())
            seen.append((optimizer.param_groups[0]["lr"], float(first.detach().sum())))

    limits = {"max_steps": 100, "max_epochs": -1, "limit_val_batches": 0, "batches_per_hook": 1}
    limits["log_every_n_steps"] = 1000  # reading metrics right after a restart would fail
    trainer = make_trainer(tmp_path, [ramp, Recorder()], enable_checkpointing=False, **limits)
    trainer.fit(module, data)
    assert [len(curve) for curve in ramp.curves] == [3, 3]
    assert [rate for rate, _ in seen] == [0.1] * 6
    weights = [weight for _, weight in seen]
    assert weights[3] == weights[0]
    assert len(set(weights)) == 5
    assert ramp.curves[0] != ramp.curves[1]  # other batches


@pytest.mark.slow
def test_batch_sizes_double_until_memory_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "TRIAL_S", 0.01)
    module, data = make_module(), make_data()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    training_step = module.training_step

    def limited(batch: Any, batch_idx: int) -> Any:
        if len(batch[0]) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return training_step(batch, batch_idx)

    module.training_step = limited  # type: ignore[method-assign]
    trials = try_batch_sizes(module, data, partial(make_trainer, tmp_path, enable_checkpointing=False))
    assert [(trial.size, trial.images_per_s is None) for trial in trials] == [
        *((8, False), (16, False), (32, True)),
    ]
    assert data.batch_size == 16  # restored
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())

    module.training_step = training_step  # type: ignore[method-assign]
    monkeypatch.setattr(batch_size, "_is_throughput_saturated", lambda trials: False)
    trials = try_batch_sizes(module, data, partial(make_trainer, tmp_path, enable_checkpointing=False))
    assert [trial.size for trial in trials] == [8, 16, 32, 64]  # for 100 training images
    assert all(trial.images_per_s for trial in trials)


def test_the_smallest_batch_size_near_the_best_throughput_is_chosen() -> None:
    speeds = [100.0, 150.0, 196.0, 200.0, None]
    trials = [BatchSizeTrial(8 * 2**number, speed, None) for number, speed in enumerate(speeds)]
    assert choose_batch_size(trials) == 32
    assert not batch_size._is_throughput_saturated(trials[:4])
    assert batch_size._is_throughput_saturated([*trials[:4], BatchSizeTrial(128, 205.0, None)])
    with pytest.raises(InputError, match=r"tune=batch_size: not even 8 inputs fit into memory"):
        choose_batch_size([BatchSizeTrial(8, None, None)])


@pytest.mark.slow
def test_tune_lr_command_does_not_train(
    composer: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    overrides = ("model=mlp", "tune=lr", "trainer.accelerator=cpu", f"paths.outputs={tmp_path}")
    config = composer(*overrides, run=folder)
    assert list(find_problems(config)) == []
    monkeypatch.setattr("sys.argv", ["scripts/train.py", "model=mlp", "tune=lr"])
    with_hydra = HydraConfig.instance().cfg
    assert with_hydra is not None
    job = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    job.paths.run = str(folder)
    assert train(job) is None
    status = RunFolder(folder).read_status()
    (found,) = status["found"].items()
    assert (status["state"], status["tune"], found[0]) == ("done", "lr", "optim.lr")
    assert 1e-5 < found[1] < 0.1
    assert (folder / "tune" / "found.txt").read_text() == f"optim.lr={found[1]:g}\n"
    assert (folder / "tune" / "lr.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / "checkpoints").exists()


@pytest.mark.slow
def test_learning_rates_and_batch_sizes_are_found_for_other_tasks(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "TRIAL_S", 0.01)
    config = resolve(composed("experiment=diabetes"))
    torch.manual_seed(0)
    module, data = build_task(config), build(config, "data")
    makes = partial(make_trainer, tmp_path, enable_checkpointing=False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    test = run_range_test(module, data, makes, repeats=2)
    assert test.suggestion is not None
    trials = try_batch_sizes(module, data, makes)
    assert 8 <= choose_batch_size(trials) <= trials[-1].size
    assert data.batch_size == 32
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ("tune=lrr", "tune=lrr: did you mean lr?"),
        ("tune=true", "tune=true: expected one of lr, batch_size, got true"),
        (
            "tune=batch_size trainer=ddp trainer.devices=2",
            "tune=batch_size: needs one device (got trainer.devices=2); set trainer.devices=1 "
            "trainer.strategy=auto, and multiply the result",
        ),
    ],
)
def test_invalid_tuning_request_is_reported_on_one_line(composer: Compose, overrides: str, line: str) -> None:
    assert list(dict.fromkeys(find_problems(composer(*overrides.split())))) == [line]
