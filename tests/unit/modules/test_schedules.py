"""Tests of learning rates in resumed runs, against torch's schedulers on an uninterrupted run."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from small_training import make_trainer
from torch.optim import lr_scheduler as torch_schedules

from project.callbacks.checkpointing import BestCheckpoint
from project.callbacks.progress import Progress
from project.datamodules.synthetic import Synthetic
from project.modules.classifier import ImageClassifier
from project.modules.networks.mlp import MLP
from project.modules.optim import schedules
from project.modules.optim.muon import Muon
from project.modules.optim.training_length import TrainingLength

IMAGES = 70  # 9 batches of 8, 5 of 16
BASES = np.array([0.2, 0.1])  # of the head, and of the block before it
STOPPED, EPOCHS = 4, 8

Rates = list[list[float]]
Reference = Callable[[torch.optim.Optimizer, int, int], Any]


def warm_then_cosine(optimizer: torch.optim.Optimizer, length: TrainingLength) -> dict[str, Any]:
    """Return a user-defined schedule from torch's parts, which compute each rate from the previous one."""
    warm = torch_schedules.LinearLR(optimizer, 0.1, total_iters=6)
    rest = torch_schedules.CosineAnnealingLR(optimizer, length.in_units_of("step") - 6)
    return {"scheduler": torch_schedules.SequentialLR(optimizer, [warm, rest], [6]), "interval": "step"}


def warmup_ratio(step: int, total: int, warmup: float) -> float:
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + np.cos(np.pi * (step - rising) / (total - rising)))


# The schedule as it is configured; its interval; torch's own for a training of so many steps and epochs.
CASES: dict[str, tuple[Callable[..., Any], str, Reference]] = {
    "constant": (
        schedules.constant,
        "epoch",
        lambda optimizer, steps, epochs: torch_schedules.ConstantLR(optimizer, 1.0),
    ),
    "step": (
        partial(schedules.step, step_size=3, gamma=0.5),
        "epoch",
        lambda optimizer, steps, epochs: torch_schedules.StepLR(optimizer, 3, 0.5),
    ),
    "multistep": (
        partial(schedules.multistep, milestones=[0.5, 0.75], gamma=0.1),
        "epoch",
        lambda optimizer, steps, epochs: torch_schedules.MultiStepLR(
            optimizer, [round(0.5 * epochs), round(0.75 * epochs)], 0.1
        ),
    ),
    "multistep_by_steps": (
        partial(schedules.multistep, milestones=[0.5, 0.75], gamma=0.1, interval="step"),
        "step",
        lambda optimizer, steps, epochs: torch_schedules.MultiStepLR(
            optimizer, [round(0.5 * steps), round(0.75 * steps)], 0.1
        ),
    ),
    "exponential": (
        partial(schedules.exponential, gamma=0.8),
        "epoch",
        lambda optimizer, steps, epochs: torch_schedules.ExponentialLR(optimizer, 0.8),
    ),
    "cosine": (
        partial(schedules.cosine, interval="step"),
        "step",
        lambda optimizer, steps, epochs: torch_schedules.CosineAnnealingLR(optimizer, steps),
    ),
    "cosine_by_epochs": (
        partial(schedules.cosine, interval="epoch"),
        "epoch",
        lambda optimizer, steps, epochs: torch_schedules.CosineAnnealingLR(optimizer, epochs),
    ),
    "linear": (
        partial(schedules.linear, final_ratio=0.1),
        "step",
        lambda optimizer, steps, epochs: torch_schedules.LinearLR(optimizer, 1.0, 0.1, steps),
    ),
    "onecycle": (
        partial(schedules.onecycle, warmup=0.3),
        "step",
        lambda optimizer, steps, epochs: torch_schedules.OneCycleLR(
            optimizer, list(BASES), total_steps=steps + 1, cycle_momentum=False
        ),
    ),
    "warmup_cosine": (
        partial(schedules.warmup_cosine, warmup=0.2),
        "step",
        lambda optimizer, steps, epochs: torch_schedules.LambdaLR(
            optimizer, partial(warmup_ratio, total=steps, warmup=0.2)
        ),
    ),
    "own": (
        warm_then_cosine,
        "step",
        lambda optimizer, steps, epochs: warm_then_cosine(optimizer, TrainingLength(steps, 1))["scheduler"],
    ),
}
CHANGES: dict[str, dict[str, Any]] = {
    "longer": {"max_epochs": 12},
    "shorter": {"max_epochs": 6},
    "batch size doubled": {"batch_size": 16},
    "accumulation doubled": {"accumulate_grad_batches": 2},
    "fewer batches": {"limit_train_batches": 4},
}


class RateRecorder(L.Callback):
    """Records the learning rates of each batch, and stops after an epoch."""

    def __init__(self, stop_after: int | None, key: str) -> None:
        self.stop_after = stop_after
        self.key = key
        self.rates: Rates = []

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        self.rates.append([group[self.key] for group in trainer.optimizers[0].param_groups])

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 == self.stop_after


def fit(
    folder: Path,
    schedule: Callable[..., Any],
    *callbacks: L.Callback,
    stop_after: int | None = None,
    resume: str | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    lr: float = 0.2,
    key: str = "lr",
    weight_decay_norm_bias: bool = True,
    batch_size: int = 8,
    **options: Any,
) -> Rates:
    """Train, optionally from `folder/{resume}.ckpt`; return the values of `key` per batch and group."""
    torch.manual_seed(0)
    module = ImageClassifier(
        MLP((1, 2, 2), 3, widths=[4]),
        optimizer=partial(optimizer, lr=lr),
        scheduler=schedule,
        layerwise_lr_decay=0.5,
        weight_decay_norm_bias=weight_decay_norm_bias,
    )
    data = Synthetic(
        input_shape=(1, 2, 2),
        num_classes=3,
        train_size=IMAGES,
        test_size=6,
        val_size=0,
        batch_size=batch_size,
    )
    record = RateRecorder(stop_after, key)
    last = BestCheckpoint(
        dirpath=folder,
        filename="last" if resume is None else "second",
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    trainer = make_trainer(folder, [record, last, *callbacks], **({"max_epochs": EPOCHS} | options))
    path = None if resume is None else folder / f"{resume}.ckpt"
    trainer.fit(module, data, ckpt_path=path, weights_only=True)
    return record.rates


def uninterrupted_rates(name: str, steps: int, steps_per_epoch: int, bases: np.ndarray = BASES) -> np.ndarray:
    """Return the learning rates (steps, groups) of an uninterrupted run by torch's scheduler."""
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": base} for base in bases]
    optimizer = torch.optim.SGD(groups)
    _, interval, make = CASES[name]
    scheduler = make(optimizer, steps, math.ceil(steps / steps_per_epoch))
    rates = []
    for step in range(1, steps + 1):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        if interval == "step" or step % steps_per_epoch == 0:
            scheduler.step()
    return np.array(rates)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_resumed_run_has_the_rates_of_an_uninterrupted_run_of_its_current_length(
    tmp_path: Path, name: str
) -> None:
    schedule = CASES[name][0]
    whole = fit(tmp_path / "whole", schedule)
    assert fit(tmp_path, schedule, stop_after=STOPPED) == whole[: 9 * STOPPED]
    assert fit(tmp_path, schedule, resume="last") == whole[9 * STOPPED :]  # bit-identical
    for change, options in CHANGES.items():
        resumed = fit(tmp_path, schedule, resume="last", **options)
        batches = {"batch_size": 5, "limit_train_batches": 4}.get(next(iter(options)), 9)
        accumulate = options.get("accumulate_grad_batches", 1)
        per_epoch, epochs = math.ceil(batches / accumulate), options.get("max_epochs", EPOCHS)
        expected = uninterrupted_rates(name, epochs * per_epoch, per_epoch)[STOPPED * per_epoch :]
        steps = [
            per_epoch * epoch + batch // accumulate
            for epoch in range(epochs - STOPPED)
            for batch in range(batches)
        ]
        np.testing.assert_allclose(resumed, expected[steps], rtol=1e-9, atol=1e-12, err_msg=change)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("constant", {}),
        ("step", {"gamma": 0.1}),
        ("step", {"step_size": 1}),
        ("exponential", {"gamma": 0.3}),
        ("multistep", {"milestones": [0.25, 0.9]}),
        ("cosine", {"final_lr": 0.05}),
        ("linear", {"final_ratio": 0.0}),
        ("onecycle", {"warmup": 0.6}),
        ("warmup_cosine", {"warmup": 0.6}),
    ],
)
def test_changed_schedule_options_apply_from_the_first_resumed_step(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    before = CASES[name][0]
    fit(tmp_path, before, stop_after=STOPPED)
    now = partial(before, **options)
    expected = fit(tmp_path / "uninterrupted_rates", now, lr=0.6)[9 * STOPPED :]
    assert fit(tmp_path, now, lr=0.6, resume="last") == expected


def test_schedule_position_survives_resuming_twice(tmp_path: Path) -> None:
    schedule = CASES["cosine"][0]
    fit(tmp_path, schedule, stop_after=STOPPED)
    fit(tmp_path, schedule, resume="last", stop_after=6, batch_size=16)
    resumed = fit(tmp_path, schedule, resume="second", batch_size=16)
    np.testing.assert_allclose(resumed, uninterrupted_rates("cosine", 40, 5)[30:], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_schedule_position_survives_resuming_within_an_epoch(tmp_path: Path) -> None:
    for name in ("exponential", "cosine", "onecycle"):
        schedule = CASES[name][0]
        fit(tmp_path, schedule, max_steps=22)
        whole = fit(tmp_path / "whole", schedule)
        assert fit(tmp_path, schedule, resume="last") == whole[22:]


def test_length_counts_steps_of_epochs_with_different_accumulation(tmp_path: Path) -> None:
    def accumulate() -> L.Callback:
        return GradientAccumulationScheduler({0: 1, 2: 4})

    batches = np.arange(9 * EPOCHS)
    epochs, steps = (
        batches // 9,
        np.where(batches < 18, batches, 18 + (batches // 9 - 2) * 3 + batches % 9 // 4),
    )
    of_each = {"cosine": steps / (18 + 3 * (EPOCHS - 2)), "cosine_by_epochs": epochs / EPOCHS}
    for name, done in of_each.items():
        schedule = CASES[name][0]
        whole = fit(tmp_path / "whole", schedule, accumulate())
        np.testing.assert_allclose(whole, np.outer(0.5 * (1 + np.cos(np.pi * done)), BASES), atol=1e-12)
        fit(tmp_path, schedule, accumulate(), max_steps=20)  # in the third epoch, after 8 batches
        assert fit(tmp_path, schedule, accumulate(), resume="last") == whole[26:]


@pytest.mark.parametrize("name", ["cosine", "linear", "onecycle", "warmup_cosine", "multistep_by_steps"])
def test_max_steps_determines_the_length(tmp_path: Path, name: str) -> None:
    schedule = CASES[name][0]
    limits = {"max_epochs": -1, "max_steps": 72}
    fit(tmp_path, schedule, stop_after=STOPPED, **limits)
    resumed = fit(tmp_path, schedule, resume="last", batch_size=16, **limits)
    np.testing.assert_allclose(resumed, uninterrupted_rates(name, 72, 9)[36:], rtol=1e-9, atol=1e-12)


def test_epoch_schedule_covers_the_epochs_within_max_steps(tmp_path: Path) -> None:
    schedule = CASES["cosine_by_epochs"][0]
    limits = {"max_epochs": -1, "max_steps": 72}
    fit(tmp_path, schedule, stop_after=STOPPED, **limits)
    resumed = fit(tmp_path, schedule, resume="last", batch_size=16, **limits)
    # 36 steps remain, which are 8 epochs of 5 steps; all 72 steps would be 15 epochs.
    ratios = [0.5 * (1 + math.cos(math.pi * epoch / 15)) for epoch in range(7, 15)]
    np.testing.assert_allclose(resumed, np.outer(np.repeat(ratios, 5)[:36], BASES), rtol=1e-9)


def test_larger_steps_do_not_reduce_the_number_of_steps_taken(tmp_path: Path) -> None:
    """36 steps of 8 images are half of the training; 20 steps of 16 images follow."""
    taken = np.arange(36, 56)
    cases = {
        "step": (partial(schedules.step, step_size=15, gamma=0.5, interval="step"), 0.5 ** (taken // 15)),
        "exponential": (partial(schedules.exponential, gamma=0.9, interval="step"), 0.9**taken),
        "multistep": (
            partial(schedules.multistep, milestones=[20, 45], gamma=0.1, interval="step"),
            np.where(taken < 45, 0.1, 0.01),
        ),
        "both": (  # after 10 of the 20 steps, three quarters of the training are done
            partial(schedules.multistep, milestones=[20, 0.75, 50], gamma=0.1, interval="step"),
            np.where(taken < 46, 0.1, np.where(taken < 50, 0.01, 0.001)),
        ),
    }
    for name, (schedule, ratios) in cases.items():
        fit(tmp_path, schedule, stop_after=STOPPED)
        resumed = fit(tmp_path, schedule, resume="last", batch_size=16)
        np.testing.assert_allclose(resumed, np.outer(ratios, BASES), rtol=1e-9, err_msg=name)


def test_plateau_schedule_restores_its_measured_state(tmp_path: Path) -> None:
    """With mode=max and a falling loss, the rate is reduced after every epoch but the first."""

    def plateau(factor: float) -> Callable[..., Any]:
        return partial(schedules.plateau, monitor="train/loss", mode="max", factor=factor, patience=0)

    first = np.array(fit(tmp_path, plateau(0.5), stop_after=STOPPED))
    np.testing.assert_allclose(first[::9], np.outer([1, 1, 0.5, 0.25], BASES), rtol=1e-9)
    resumed = np.array(fit(tmp_path, plateau(0.1), resume="last", lr=0.4, max_epochs=7))
    ratios = 2 * 0.125 * np.array([1, 0.1, 0.01])
    np.testing.assert_allclose(resumed[::9], np.outer(ratios, BASES), rtol=1e-9)


def test_changed_schedule_continues_at_the_same_position(tmp_path: Path) -> None:
    falling = partial(schedules.plateau, monitor="train/loss", mode="max", factor=0.5, patience=0)
    for before, now in ((CASES["constant"][0], CASES["cosine"][0]), (falling, CASES["step"][0])):
        fit(tmp_path, before, stop_after=STOPPED)
        expected = fit(tmp_path / "uninterrupted_rates", now)[9 * STOPPED :]
        assert fit(tmp_path, now, resume="last") == expected
    fit(tmp_path, CASES["cosine"][0], stop_after=STOPPED)
    assert fit(tmp_path, falling, resume="last", max_epochs=5) == [BASES.tolist()] * 9


def test_cycled_momentum_is_fast_forwarded_too(tmp_path: Path) -> None:
    def cycle(optimizer: torch.optim.Optimizer, length: TrainingLength) -> dict[str, Any]:
        total = length.in_units_of("step") + 1
        scheduler = torch_schedules.OneCycleLR(optimizer, BASES.tolist(), total_steps=total)
        return {"scheduler": scheduler, "interval": "step"}

    options: dict[str, Any] = {"optimizer": partial(torch.optim.SGD, momentum=0.5), "key": "momentum"}
    whole = fit(tmp_path / "whole", cycle, max_epochs=12, **options)
    assert len({momentum for momentum, _ in whole}) > 10
    fit(tmp_path, cycle, stop_after=STOPPED, **options)
    assert fit(tmp_path, cycle, resume="last", max_epochs=12, **options) == whole[9 * STOPPED :]


@pytest.mark.slow
def test_all_groups_of_a_combined_optimizer_follow_the_schedule(tmp_path: Path) -> None:
    options: dict[str, Any] = {"optimizer": Muon, "weight_decay_norm_bias": False}
    for name in ("multistep", "cosine"):
        schedule = CASES[name][0]
        whole = fit(tmp_path / "whole", schedule, max_epochs=12, lr=0.02, **options)
        assert len(whole[0]) == 4
        fit(tmp_path, schedule, stop_after=STOPPED, **options)
        resumed = fit(tmp_path, schedule, resume="last", max_epochs=12, lr=0.02, **options)
        assert resumed == whole[9 * STOPPED :]


def test_progress_bar_total_equals_the_number_of_batches(tmp_path: Path) -> None:
    class Shown(Progress):
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            shown.append((self._bar.total, self._num_batches))
            super().on_train_end(trainer, pl_module)

    shown: list[tuple[int, int]] = []
    schedule = CASES["cosine"][0]
    fit(tmp_path, schedule, stop_after=STOPPED)
    for options in (*CHANGES.values(), {"max_steps": 50, "batch_size": 16}):
        fit(tmp_path, schedule, Shown(), resume="last", enable_progress_bar=True, **options)
    assert [total for total, _ in shown] == [trained for _, trained in shown] == [108, 54, 56, 72, 52, 50]


def test_step_frequency_counts_as_in_lightning(tmp_path: Path) -> None:
    def every_other(optimizer: torch.optim.Optimizer, length: TrainingLength) -> dict[str, Any]:
        scheduler = torch_schedules.ExponentialLR(optimizer, 0.9)
        return {"scheduler": scheduler, "interval": "step", "frequency": 2}

    whole = fit(tmp_path / "whole", every_other)
    fit(tmp_path, every_other, stop_after=STOPPED)
    assert fit(tmp_path, every_other, resume="last") == whole[9 * STOPPED :]
