"""Tests of `ImageClassifier` and its callbacks under Lightning's trainer."""

from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from conftest import read_table
from lightning.pytorch.callbacks import ModelCheckpoint
from small_training import make_data, make_module, make_trainer

from project.callbacks.checkpointing import BestCheckpoint
from project.callbacks.ema import EMA
from project.callbacks.run_record import RunRecord
from project.loggers.csv import MetricsCSV
from project.modules.optim import schedules
from project.modules.optim.training_length import TrainingLength


def test_interval_and_epoch_means_are_logged_at_their_steps(tmp_path: Path) -> None:
    logger = MetricsCSV(str(tmp_path / "metrics.csv"))
    trainer = make_trainer(tmp_path, logger=logger, enable_checkpointing=False)
    trainer.fit(make_module(), make_data())
    rows = read_table(tmp_path / "metrics.csv")
    assert [int(row["step"]) for row in rows] == [3, 6, 7, 9, 12, 14]
    assert [bool(row["val/acc"]) for row in rows] == [False, False, True] * 2
    # An epoch's mean is over its images: steps 8 and 9, steps 10 to 12, and step 13 with the partial 14.
    images = [32, 48, 20]
    mean = sum(float(row["train/loss"]) * count for row, count in zip(rows[3:], images, strict=True)) / 100
    assert trainer.callback_metrics["train/loss"] == pytest.approx(mean, rel=1e-5)


def test_second_fit_logs_intervals_too(tmp_path: Path) -> None:
    module = make_module()
    steps = []
    for name in ("first", "second"):
        logger = MetricsCSV(str(tmp_path / f"{name}.csv"))
        make_trainer(tmp_path, logger=logger, enable_checkpointing=False).fit(module, make_data())
        steps.append([row["step"] for row in read_table(logger.file)])
    assert steps[0] == steps[1]


def test_epoch_means_are_available_to_callbacks_at_epoch_end(tmp_path: Path) -> None:
    class WhiteningBiasRecorder(L.Callback):
        def on_train_epoch_end(self, trainer, module) -> None:
            self.seen = trainer.callback_metrics["train/loss"].item()

    watch = WhiteningBiasRecorder()
    trainer = make_trainer(tmp_path, [watch], max_epochs=1, enable_checkpointing=False)
    trainer.fit(make_module(), make_data())
    assert watch.seen == trainer.callback_metrics["train/loss"].item()


def test_checkpoint_keeps_earlier_csv_rows(tmp_path: Path) -> None:
    class Cut(L.Callback):
        def on_train_epoch_start(self, trainer, module) -> None:
            if trainer.current_epoch == 2:
                self.rows = read_table(tmp_path / "metrics.csv")

    cut = Cut()
    logger = MetricsCSV(str(tmp_path / "metrics.csv"))
    last = BestCheckpoint(tmp_path, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    make_trainer(tmp_path, [cut, last], logger=logger, max_epochs=3).fit(make_module(), make_data())
    assert [int(row["step"]) for row in cut.rows] == [3, 6, 7, 9, 12, 14]
    assert [int(row["step"]) for row in read_table(logger.file)] == [3, 6, 7, 9, 12, 14, 15, 18, 21]


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfit_batches_repeats_the_same_batch(tmp_path: Path) -> None:
    class Sums(L.Callback):
        def __init__(self) -> None:
            self.sums: list[float] = []

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
            self.sums.append(batch[0].sum().item())

    sums = Sums()
    trainer = make_trainer(tmp_path, [sums], max_epochs=3, overfit_batches=1, enable_checkpointing=False)
    trainer.fit(make_module(), make_data())
    assert len(sums.sums) == 3
    assert len({*sums.sums}) == 1


def test_training_is_bit_identical_to_a_plain_loop(tmp_path: Path) -> None:
    trained = make_module()
    make_trainer(tmp_path, enable_checkpointing=False).fit(trained, make_data())

    bare, data = make_module(), make_data()
    data.setup("fit")
    loader = data.train_dataloader()
    network, optimizer = (
        bare.network.train(),
        torch.optim.SGD(bare.network.parameters(), lr=0.05, momentum=0.9),
    )
    schedule = schedules.cosine(optimizer, TrainingLength(14, 7))["scheduler"]
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
            schedule.step()
    for name, value in network.state_dict().items():
        assert torch.equal(value, trained.network.state_dict()[name]), name


def test_validation_and_test_count_every_image_once(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    module, data = make_module(), make_data(eval_batch_size=7)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert trainer.callback_metrics["test/images"] == 50
    module.eval()
    batches = list(data.test_dataloader())
    with torch.no_grad():
        correct = sum((module(images).argmax(dim=1) == labels).sum().item() for images, labels in batches)
    assert trainer.callback_metrics["test/acc"].item() == pytest.approx(correct / 50)


def test_checkpoints_hold_plain_values_that_rebuild_the_network(tmp_path: Path) -> None:
    config = {"model": {"depth": 8}, "names": ["a", "b"]}
    checkpoint = ModelCheckpoint(dirpath=tmp_path, filename="last", every_n_epochs=1)
    module = make_module()
    make_trainer(tmp_path, [RunRecord(config), checkpoint, EMA(0.9)]).fit(module, make_data())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["config"] == config
    fresh = make_module()
    fresh.load_state_dict(saved["state_dict"])
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(fresh.eval()(images), module.eval()(images))


@pytest.mark.slow
def test_compiled_network_trains_equally_and_saves_plain_keys(tmp_path: Path) -> None:
    calls = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        calls.append(len(inputs))
        return graph.forward

    module, plain = make_module(compile=True), make_module()
    compile_network = module.network.compile
    module.network.compile = lambda **options: compile_network(backend=backend, **options)
    for each in (module, plain):
        make_trainer(tmp_path, max_epochs=1, enable_checkpointing=False).fit(each, make_data())
    assert calls
    assert list(module.state_dict()) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value)


def test_channels_last_does_not_change_results() -> None:
    images = torch.randn(4, 1, 8, 8)
    plain, last = make_module().eval(), make_module(channels_last=True).eval()
    assert last.network.body[3].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(plain(images), last(images))


def test_ema_follows_its_formula_and_is_the_final_weights(tmp_path: Path) -> None:
    class Recorder(L.Callback):
        def __init__(self) -> None:
            self.weights: list[torch.Tensor] = []

        def on_train_start(self, trainer, module) -> None:
            self.weights.append(module.network.head.weight.detach().clone())

        def on_train_batch_end(self, trainer, module, *args) -> None:
            self.weights.append(module.network.head.weight.detach().clone())

    recorder, module = Recorder(), make_module()
    make_trainer(tmp_path, [recorder, EMA(0.6)], enable_checkpointing=False).fit(module, make_data())
    average = recorder.weights[0]
    for step, weight in enumerate(recorder.weights[1:], start=1):
        decay = min(0.6, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(module.network.head.weight.detach(), average)


def test_validation_uses_the_ema_and_training_the_raw_weights(tmp_path: Path) -> None:
    seen = {}

    class WhiteningBiasRecorder(L.Callback):
        def on_validation_start(self, trainer, module) -> None:
            seen["average"] = module.network.head.weight.detach().clone()

        def on_validation_end(self, trainer, module) -> None:
            seen["raw"] = module.network.head.weight.detach().clone()

    ema = EMA(0.9)
    trainer = make_trainer(tmp_path, [ema, WhiteningBiasRecorder()], max_epochs=1, enable_checkpointing=False)
    module = make_module()
    trainer.fit(module, make_data())
    assert torch.equal(seen["average"], module.network.head.weight)
    assert not torch.equal(seen["average"], seen["raw"])


def fit(folder: Path, *callbacks: L.Callback, resume: Path | None = None, **options):
    last = BestCheckpoint(
        dirpath=folder,
        filename="last",
        every_n_epochs=1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    module = make_module()
    trainer = make_trainer(folder, [last, *callbacks], **({"max_epochs": 6} | options))
    trainer.fit(module, make_data(), ckpt_path=resume, weights_only=True)
    return module


def test_run_resumed_mid_epoch_trains_on_the_remaining_images(tmp_path: Path) -> None:
    # 7 batches per epoch; stopped after the third batch of the second epoch.
    fit(tmp_path / "halves", max_epochs=-1, max_steps=10)
    checkpoint = torch.load(tmp_path / "halves" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 10
    (state,) = (value for name, value in checkpoint.items() if name == "Synthetic")
    assert (state["epoch"], state["batches_done"]) == (1, 3)

    class Rows(L.Callback):
        def __init__(self) -> None:
            self.labels: list[int] = []

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
            self.labels += batch[1].tolist()

    rows, expected = Rows(), Rows()
    fit(tmp_path / "halves", rows, max_epochs=-1, max_steps=14, resume=tmp_path / "halves" / "last.ckpt")
    fit(tmp_path / "again", expected, max_epochs=-1, max_steps=14)
    assert rows.labels == expected.labels[100 + 48 :]
    assert len(rows.labels) == 52


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        partial(schedules.cosine, interval="step"),
        partial(schedules.onecycle, warmup=0.3),
        partial(schedules.warmup_cosine, warmup=0.2),
        partial(schedules.multistep, milestones=[0.5], gamma=0.1),
        partial(schedules.plateau, monitor="val/loss", mode="min", factor=0.1, patience=99),
        schedules.constant,
    ],
)
def test_resumed_run_uses_the_current_configuration(tmp_path: Path, make) -> None:
    class Rates(L.Callback):
        def __init__(self) -> None:
            self.lr: list[float] = []

        def on_train_batch_start(self, trainer, module, *args) -> None:
            self.lr.append(trainer.optimizers[0].param_groups[0]["lr"])

    def run(epochs: int, lr: float, resume: Path | None = None) -> list[float]:
        module = make_module()
        module.scheduler_factory = make
        module.optimizer_factory = partial(torch.optim.SGD, lr=lr, momentum=0.5)
        last = BestCheckpoint(
            dirpath=tmp_path, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
        )
        rates = Rates()
        make_trainer(tmp_path, [last, rates], max_epochs=epochs).fit(
            module, make_data(), ckpt_path=resume, weights_only=True
        )
        return rates.lr

    run(3, lr=0.1)
    resumed = run(6, lr=0.2, resume=tmp_path / "last.ckpt")
    uninterrupted_rates = run(6, lr=0.2)
    assert resumed == pytest.approx(uninterrupted_rates[21:])


def test_moved_run_folder_keeps_its_best_score(tmp_path: Path) -> None:
    def best(folder: Path) -> BestCheckpoint:
        return BestCheckpoint(dirpath=folder, filename="best", monitor="val/acc", mode="max")

    first = best(tmp_path / "here")
    first.best_model_path = first.kth_best_model_path = str(tmp_path / "here" / "best.ckpt")
    first.best_k_models = {first.best_model_path: torch.tensor(0.75)}
    first.best_model_score = torch.tensor(0.75)
    second = best(tmp_path / "there")
    second.load_state_dict(first.state_dict())
    assert second.best_model_score == 0.75
    assert second.best_model_path == str(tmp_path / "there" / "best.ckpt")
    assert list(second.best_k_models) == [second.best_model_path]
