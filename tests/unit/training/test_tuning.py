"""Tests of the search for a learning rate and a batch size."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose
from hydra.core.hydra_config import HydraConfig
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
from project.training.tuning.range_test import run_range_test, suggest_lr


def test_suggested_lr_trains_and_the_module_is_restored(tmp_path: Path) -> None:
    def makes_trainer(**options: Any) -> Any:
        options = {"max_epochs": 3, "enable_checkpointing": False, "log_every_n_steps": 50} | options
        return make_trainer(tmp_path, **options)

    module, data = make_module(), make_data()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    schedule = module.scheduler_factory
    found = run_range_test(module, data, makes_trainer, steps=100, highest=100.0)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.scheduler_factory is schedule
    assert found.rates[0] == 1e-7
    assert len(found.rates) < 100  # the loss diverged
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


def test_suggested_lr_is_steepest_and_below_a_tenth_of_the_lowest() -> None:
    rates = [10.0**power for power in (-5, -4, -3, -2, -1, 0)]
    assert suggest_lr(rates, [2.3, 2.0, 1.0, 0.95, 0.9, 5.0]) == 1e-4
    assert suggest_lr(rates, [2.3, 2.3, 2.1, 1.2, 1.15, 5.0]) == 1e-3
    assert suggest_lr([1e-4, 3e-4, 1e-3, 3e-3, 1e-2], [2.3, 2.3, 2.2, 1.9, 1.0]) == 1e-3  # steepest at 3e-3
    assert suggest_lr(rates, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) is None


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


def test_learning_rates_and_batch_sizes_are_found_for_other_tasks(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "TRIAL_S", 0.01)
    config = resolve(composed("experiment=diabetes"))
    torch.manual_seed(0)
    module, data = build_task(config), build(config, "data")
    makes = partial(make_trainer, tmp_path, enable_checkpointing=False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    test = run_range_test(module, data, makes, steps=100, highest=100.0)
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
