"""Tests that training with batched hooks is bit-identical to Lightning's own loop."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import read_table
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.profilers import SimpleProfiler
from small_training import make_data, make_module, make_trainer
from torch import nn

from project.callbacks.ema import EMA
from project.datamodules.loading.augmentation import Augmentation
from project.datamodules.synthetic import Synthetic
from project.errors import InputError
from project.loggers.csv import MetricsCSV
from project.modules.networks.dropout import Dropout
from project.modules.optim import schedules
from project.runtime.process import silence_libraries
from project.training import epoch_loop
from project.training.ddp.launch import run_ranks
from project.training.trainer import Trainer

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip": {"gradient_clip_val": 0.5},
    "clip_value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "accumulate": {"accumulate_grad_batches": 3},
    "accumulate_and_clip": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "log_every_n_steps": 2},
    "bf16": {"precision": "bf16-mixed"},
    "float64": {"precision": "64-true"},
    "max_steps": {"max_epochs": -1, "max_steps": 17},
    "max_steps_accumulated": {"max_epochs": -1, "max_steps": 8, "accumulate_grad_batches": 2},
    "validation_in_mid_epoch": {"val_check_interval": 0.3},
    "validation_across_epochs": {"val_check_interval": 5, "check_val_every_n_epoch": None},
    "limited": {"limit_train_batches": 5},
    "all_together": {
        "gradient_clip_val": 0.5,
        "accumulate_grad_batches": 2,
        "precision": "bf16-mixed",
        "val_check_interval": 0.5,
        "max_steps": 9,
    },
}
SLOW_STEPS_S = 60.0
"""Automatic groups get longer although steps take long on a busy machine."""


class HookStepRecorder(L.Callback):
    """Records the steps at which its hook is called."""

    supports_batched_hooks = True

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer, module, *args) -> None:
        self.steps.append(trainer.global_step)


def run(folder: Path, batches_per_hook: int | None, schedule="cosine", **options) -> dict[str, Any]:
    """Train with every feature that depends on steps; return all comparable results."""
    torch.manual_seed(1)
    module = make_module()
    module.network.body.append(Dropout(0.2))
    makers = {
        "cosine": partial(schedules.cosine, interval="step"),
        "plateau": partial(schedules.plateau, monitor="val/loss", mode="min", factor=0.1, patience=0),
    }
    module.scheduler_factory = makers[schedule]
    every_4 = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    stopping = EarlyStopping("val/loss", patience=4, check_on_train_epoch_end=False)
    recorder = HookStepRecorder()
    trainer = make_trainer(
        folder,
        [EMA(0.9), every_4, stopping, recorder],
        logger=MetricsCSV(str(folder / "metrics.csv")),
        batches_per_hook=batches_per_hook,
        **({"max_epochs": 3} | options),
    )
    torch.manual_seed(2)  # dropout
    data = make_data(augment=Augmentation(3, random_crop_padding=1, mixup=0.4), seed=3)
    trainer.fit(module, data)
    checkpoints = {file.name: torch.load(file, weights_only=True) for file in folder.glob("*.ckpt")}
    return {
        "weights": module.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "checkpoints": {name: file["state_dict"] | file["ema"]["raw"] for name, file in checkpoints.items()},
        "loops": {name: file["loops"] for name, file in checkpoints.items()},
        "fit_loop": trainer.fit_loop.state_dict(),
        "metrics": read_table(folder / "metrics.csv") if trainer.is_global_zero else [],
        "seen": {name: value.item() for name, value in trainer.callback_metrics.items()},
        "steps": trainer.global_step,
        "visits": recorder.steps,
    }


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    differing = [name for name, same in _compare(one, other) if not same and not name.startswith(".visits")]
    assert not differing


def _compare(one: Any, other: Any, name: str = "") -> Iterator[tuple[str, bool]]:
    if isinstance(one, dict) and one.keys() == other.keys():
        for key in one:
            yield from _compare(one[key], other[key], f"{name}.{key}")
    elif isinstance(one, list | tuple) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from _compare(*pair, f"{name}[{number}]")
    elif isinstance(one, torch.Tensor):
        yield name, torch.equal(one, other)
    else:
        yield name, one == other


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_batched_hooks_train_bit_identically_to_lightnings_loop(tmp_path: Path, kind: str) -> None:
    single = run(tmp_path / "1", 1, **KINDS[kind])
    assert len(single["checkpoints"]) >= 1
    batches = max(single["visits"].count(step) for step in single["visits"])
    assert batches == KINDS[kind].get("accumulate_grad_batches", 1)
    for batches_per_hook in (2, 64):
        batched = run(tmp_path / str(batches_per_hook), batches_per_hook, **KINDS[kind])
        assert_same(single, batched)
        assert len(batched["visits"]) < len(single["visits"])


def test_automatic_group_size_works_with_a_plateau_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch_loop, "HOOK_INTERVAL_S", SLOW_STEPS_S)
    single = run(tmp_path / "1", 1, schedule="plateau")
    automatic = run(tmp_path / "automatic", None, schedule="plateau")
    assert_same(single, automatic)
    assert len(automatic["visits"]) < len(single["visits"])


def _train_two_ranks(folder: Path) -> None:
    silence_libraries()
    epoch_loop.HOOK_INTERVAL_S = SLOW_STEPS_S  # this process ends with the test
    kinds = [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}, {"max_epochs": -1, "max_steps": 9}]
    for number, kind in enumerate(kinds):
        results = [
            run(folder / f"{number}_{batches_per_hook}", batches_per_hook, strategy="ddp", devices=2, **kind)
            for batches_per_hook in (1, 2, 64, None)
        ]
        for other in results[1:]:
            assert_same(results[0], other)
            assert len(other["visits"]) < len(results[0]["visits"])
        assert (results[0]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"]) > 8


@pytest.mark.slow
def test_batched_hooks_train_bit_identically_on_two_ranks(tmp_path: Path) -> None:
    run_ranks(lambda: _train_two_ranks(tmp_path), 2)  # raises if a rank fails


@pytest.mark.slow
def test_group_ends_at_every_boundary(tmp_path: Path) -> None:
    # 7 batches per epoch; a checkpoint every 4 steps; hooks are always called for the first batch.
    assert run(tmp_path / "free", 64)["visits"] == [1, 4, 7, 8, 12, 14, 16, 20, 21]
    assert run(tmp_path / "checked", 64, val_check_interval=3)["visits"][:7] == [1, 3, 4, 6, 7, 8, 10]
    assert run(tmp_path / "least", 64, max_epochs=1, min_steps=9)["visits"] == [1, 4, 7]
    stopped = run(tmp_path / "stopped", 64, max_epochs=-1, max_steps=6)
    assert stopped["visits"] == [1, 4, 6]
    assert stopped["steps"] == 6


class BatchHookCallback(L.Callback):
    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        self.steps = getattr(self, "steps", 0) + 1


def test_parts_that_need_every_batch_disable_batched_hooks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    meddling = BatchHookCallback()
    with caplog.at_level("INFO", "project"):
        make_trainer(tmp_path, [meddling], enable_checkpointing=False).fit(make_module(), make_data())
    assert meddling.steps == 14
    told = [line for line in caplog.messages if line.startswith("hooks are called for every batch")]
    assert told == [
        "hooks are called for every batch, which is slower: "
        "BatchHookCallback.on_before_optimizer_step is called for every batch"
    ]
    for callback in (BatchHookCallback(), LearningRateMonitor()):
        trainer = make_trainer(
            tmp_path, [callback], logger=MetricsCSV(str(tmp_path / "m.csv")), batches_per_hook=8
        )
        name = type(callback).__name__
        with pytest.raises(
            InputError,
            match=rf"trainer\.batches_per_hook=8: {name}\.on_.* is called for every batch; set trainer",
        ):
            trainer.fit(make_module(), make_data())
    trainer = make_trainer(tmp_path, profiler=SimpleProfiler(), batches_per_hook=8)
    with pytest.raises(
        InputError, match=r"trainer\.batches_per_hook=8: trainer\.profiler measures every batch"
    ):
        trainer.fit(make_module(), make_data())
    module = make_module()
    module.optimizer_factory = torch.optim.LBFGS
    with pytest.raises(
        InputError, match=r"trainer\.batches_per_hook=8: LBFGS computes the loss several times a step"
    ):
        make_trainer(tmp_path, batches_per_hook=8, gradient_clip_val=None).fit(module, make_data())


class BrighteningData(Synthetic):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] + 1, batch[1]


def test_transfer_hooks_of_a_datamodule_run_for_every_batch(tmp_path: Path) -> None:
    weights = []
    for batches_per_hook in (1, None):
        data = BrighteningData(
            input_shape=(1, 8, 8), num_classes=3, train_size=110, test_size=10, batch_size=16
        )
        module = make_module()
        make_trainer(
            tmp_path, batches_per_hook=batches_per_hook, max_epochs=1, enable_checkpointing=False
        ).fit(module, data)
        weights.append(module.network.head.weight)
    assert torch.equal(*weights)
    with pytest.raises(
        InputError, match=r"BrighteningData\.on_after_batch_transfer is called for every batch"
    ):
        make_trainer(tmp_path, batches_per_hook=8).fit(make_module(), data)


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
def test_stochastic_weight_averaging_gives_equal_results(tmp_path: Path) -> None:
    weights = []
    for batches_per_hook in (1, 8):
        module = make_module()
        swa = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
        trainer = make_trainer(
            tmp_path, [swa], batches_per_hook=batches_per_hook, max_epochs=3, enable_checkpointing=False
        )
        trainer.fit(module, make_data())
        weights.append(module.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_loader_may_end_before_its_length(tmp_path: Path) -> None:
    class Short:
        def __len__(self) -> int:
            return 10

        def __iter__(self):
            return iter([(torch.ones(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))] * 7)

    recorder = HookStepRecorder()
    trainer = make_trainer(tmp_path, [recorder], batches_per_hook=4, max_epochs=1, enable_checkpointing=False)
    module = make_module()
    trainer.fit(module, Short())
    assert recorder.steps == [1, 5, 7]
    assert trainer.global_step == 7


def test_optimizer_hooks_are_called_within_groups(tmp_path: Path) -> None:
    class Hooked(L.Callback):
        def on_train_start(self, trainer, module) -> None:
            self.steps = 0
            trainer.optimizers[0].register_step_post_hook(self.count)

        def count(self, optimizer, *args) -> None:
            self.steps += 1

    hooked = Hooked()
    make_trainer(tmp_path, [hooked], batches_per_hook=8, enable_checkpointing=False).fit(
        make_module(), make_data()
    )
    assert hooked.steps == 14


def test_user_module_may_log_and_load_in_training_step(tmp_path: Path) -> None:
    class Own(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(4, 2)

        def training_step(self, batch, batch_idx):
            loss = self.layer(batch[0]).square().mean()
            self.log("loss", loss, on_step=True, on_epoch=True)
            return {"loss": loss}

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(batches_per_hook: int) -> tuple[Own, Trainer, list[dict[str, str]]]:
        images = torch.utils.data.TensorDataset(torch.arange(44.0).view(11, 4) / 44)
        logger = MetricsCSV(str(tmp_path / f"{batches_per_hook}.csv"))
        trainer = make_trainer(
            tmp_path, batches_per_hook=batches_per_hook, logger=logger, enable_checkpointing=False
        )
        module = Own()
        trainer.fit(module, torch.utils.data.DataLoader(images, batch_size=2))
        return module, trainer, read_table(logger.file)

    (single, one, rows), (batched, other, batched_rows) = fit(1), fit(4)
    assert torch.equal(single.layer.weight, batched.layer.weight)
    assert rows == batched_rows
    assert sum(bool(row["loss_step"]) for row in rows) == 4  # of 12 steps
    assert one.callback_metrics.keys() == other.callback_metrics.keys()
    for name, value in one.callback_metrics.items():
        torch.testing.assert_close(other.callback_metrics[name], value)
