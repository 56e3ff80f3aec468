"""Tests of losses and gradients over several batches, against torch's loss of one large batch."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from conftest import read_table
from small_training import make_data, make_trainer
from torch import Tensor, nn
from torch.nn import functional as F

from project.datamodules.loading.augmentation import Augmentation
from project.datamodules.synthetic import Synthetic
from project.inference.evaluate.ensemble import average_probabilities
from project.inference.evaluate.forward import ForwardResult
from project.inference.evaluate.metrics import Predictions
from project.loggers.csv import MetricsCSV
from project.modules.classifier import ImageClassifier
from project.modules.losses import CrossEntropy, OneHotMSE, total_weight_of
from project.modules.metrics import LossAndAccuracy
from project.runtime.process import silence_libraries
from project.training.ddp.launch import run_ranks

WEIGHTS = [50.0, 1.0, 3.0]
LOSSES = {
    "weights": partial(CrossEntropy, 3, class_weights=WEIGHTS),
    "weights and smoothing": partial(CrossEntropy, 3, class_weights=WEIGHTS, label_smoothing=0.3),
    "weight zero": partial(CrossEntropy, 3, class_weights=[0.0, 1.0, 3.0]),
    "ignored class": partial(nn.CrossEntropyLoss, ignore_index=2),
    "ignored class and weights": lambda: nn.CrossEntropyLoss(torch.tensor(WEIGHTS), ignore_index=2),
    "plain": partial(CrossEntropy, 3),
    "squares": partial(OneHotMSE, 3),
}


class SmallMLP(nn.Module):
    """Network whose outputs do not depend on other images of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def make(loss: nn.Module, lr: float = 0.05) -> ImageClassifier:
    torch.manual_seed(0)
    optimizer = partial(torch.optim.SGD, lr=lr, momentum=0.9)
    return ImageClassifier(SmallMLP(), loss, optimizer)


def loss_of_one_batch(module: ImageClassifier, data: Synthetic, split: str) -> float:
    """Return the loss of a split as one batch."""
    images, labels = map(torch.cat, zip(*data.evaluation_loader(split), strict=True))
    with torch.no_grad():
        return module.loss(module(images), labels).item()


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("batch_size", [5, 7, 256])
def test_split_loss_equals_the_loss_of_one_large_batch(tmp_path: Path, kind: str, batch_size: int) -> None:
    module, data = make(LOSSES[kind]()), make_data(eval_batch_size=batch_size)
    trainer = make_trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    trainer.fit(make(CrossEntropy(3)), data)
    trainer.validate(module, data, verbose=False)
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(
        loss_of_one_batch(module, data, "val"), rel=1e-5
    )
    trainer.test(module, data, verbose=False)
    assert trainer.callback_metrics["test/loss"].item() == pytest.approx(
        loss_of_one_batch(module, data, "test"), rel=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "mixup"),
    [(kind, 0.0) for kind in LOSSES if "zero" not in kind]
    + [("weights", 0.4), ("weights and smoothing", 0.4), ("plain", 0.4)],
)
def test_train_loss_is_the_mean_over_all_images_of_an_interval(
    tmp_path: Path, kind: str, mixup: float
) -> None:
    logger = MetricsCSV(str(tmp_path / "metrics.csv"))
    module, data = make(LOSSES[kind](), lr=0.0), make_data(augment=Augmentation(3, mixup=mixup))
    trainer = make_trainer(tmp_path, logger=logger, max_epochs=1, enable_checkpointing=False)
    trainer.fit(module, data)
    batches = list(data.train_dataloader())
    means = []
    for part in (batches[:3], batches[3:6], batches[6:], batches):
        images, targets = map(torch.cat, zip(*part, strict=True))
        means.append(module.loss(module(images), targets).item())
    rows = [float(row["train/loss"]) for row in read_table(logger.file)]
    assert [*rows, trainer.callback_metrics["train/loss"].item()] == pytest.approx(means, rel=1e-5)


def train_one_batch_per_step(
    module: ImageClassifier, data: Synthetic, accumulate: int, *, limit: int = 99, steps: int = 99
) -> list[Tensor]:
    """Train for two epochs in a plain loop, with the images of each accumulation window as one batch."""
    network = module.network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    loader = data.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)[:limit]
        for first in range(0, len(batches), accumulate):
            window = batches[first : first + accumulate]
            images, targets = map(torch.cat, zip(*window, strict=True))
            if steps:
                optimizer.zero_grad()
                module.loss(network(images), targets).backward()
                optimizer.step()
                steps -= 1
    return list(network.parameters())


# 7 batches an epoch, of 16 images and a last one of 4: windows of 3 batches end with that one alone.
@pytest.mark.parametrize("chunk", [1, 64])
@pytest.mark.parametrize(
    ("accumulate", "options", "limit", "steps"),
    [
        (1, {}, 99, 99),
        (2, {}, 99, 99),
        (3, {}, 99, 99),
        (4, {}, 99, 99),
        (9, {}, 99, 99),
        (4, {"limit_train_batches": 5}, 5, 99),
        (3, {"max_epochs": -1, "max_steps": 5}, 99, 5),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "weights and smoothing", "ignored class", "squares"])
def test_accumulated_gradient_equals_that_of_one_large_batch(
    tmp_path: Path, chunk: int, accumulate: int, options: dict, limit: int, steps: int, kind: str
) -> None:
    module = make(LOSSES[kind]())
    options = {"accumulate_grad_batches": accumulate, "enable_checkpointing": False, **options}
    make_trainer(tmp_path, batches_per_hook=chunk, **options).fit(module, data := make_data())
    wanted = train_one_batch_per_step(make(LOSSES[kind]()), data, accumulate, limit=limit, steps=steps)
    torch.testing.assert_close(list(module.network.parameters()), wanted)


def test_accumulated_gradient_is_right_in_half_precision(tmp_path: Path) -> None:
    module, options = make(LOSSES["weights"]()), {"max_epochs": -1, "max_steps": 1, "precision": "bf16-true"}
    data, before = make_data(), [weight.detach().clone() for weight in module.network.parameters()]
    make_trainer(tmp_path, accumulate_grad_batches=4, enable_checkpointing=False, **options).fit(module, data)
    wanted = train_one_batch_per_step(make(LOSSES["weights"]()), data, accumulate=4, steps=1)
    for own, right, start in zip(module.network.parameters(), wanted, before, strict=True):
        assert (own.float() - right).norm() < 0.1 * (right - start).norm() + 2**-8 * right.norm()


def test_full_windows_of_equal_batches_train_bit_identically_to_lightning(tmp_path: Path) -> None:
    module, bare, data = make(CrossEntropy(3)), make(CrossEntropy(3)), make_data()
    options = {"accumulate_grad_batches": 3, "limit_train_batches": 6, "enable_checkpointing": False}
    make_trainer(tmp_path, max_epochs=1, **options).fit(module, data)
    optimizer = torch.optim.SGD(bare.network.parameters(), lr=0.05, momentum=0.9)
    for number, (images, labels) in enumerate(list(data.train_dataloader())[:6]):
        (F.cross_entropy(bare.network(images), labels) / 3).backward()
        if number % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
    for own, wanted in zip(module.network.parameters(), bare.network.parameters(), strict=True):
        assert torch.equal(own, wanted)


def test_resuming_within_a_window_averages_the_remaining_batches(tmp_path: Path) -> None:
    class Save(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
            if batch_idx == 4:  # second batch of the second window
                trainer.save_checkpoint(tmp_path / "within.ckpt")

    options = {"max_epochs": 1, "accumulate_grad_batches": 3}
    data = make_data()
    make_trainer(tmp_path, [Save()], enable_checkpointing=False, **options).fit(make(CrossEntropy(3)), data)
    module = make(CrossEntropy(3))
    make_trainer(tmp_path, enable_checkpointing=False, **options).fit(
        module, make_data(), ckpt_path=tmp_path / "within.ckpt", weights_only=True
    )
    bare = make(CrossEntropy(3))
    optimizer = torch.optim.SGD(bare.network.parameters(), lr=0.05, momentum=0.9)
    batches = list(data.train_dataloader())
    for window in (batches[:3], batches[5:6], batches[6:]):
        images, labels = map(torch.cat, zip(*window, strict=True))
        optimizer.zero_grad()
        bare.loss(bare.network(images), labels).backward()
        optimizer.step()
    torch.testing.assert_close(list(module.network.parameters()), list(bare.network.parameters()))


def test_weighted_metrics_are_restored_on_any_number_of_ranks() -> None:
    torch.manual_seed(3)
    loss = LOSSES["weights"]()
    logits, labels = torch.randn(40, 3), torch.arange(40) % 3

    def metrics() -> LossAndAccuracy:
        return LossAndAccuracy(total_weight_of(loss))

    def append(metric: LossAndAccuracy, rows: range) -> LossAndAccuracy:
        for row in rows:
            part = slice(row, row + 5)
            metric.append(loss(logits[part], labels[part]), logits[part], labels[part])
        return metric

    uninterrupted_rates = append(metrics(), range(0, 40, 5))
    halfway = append(metrics(), range(0, 20, 5)).export()
    resumed = metrics()
    resumed.restore(halfway, 0, 1)
    append(resumed, range(20, 40, 5))
    both = {name: value if name == "shapes" else torch.cat([value, value]) for name, value in halfway.items()}
    alone = metrics()  # of two ranks
    alone.restore(both, 0, 1)
    append(append(alone, range(20, 40, 5)), range(20, 40, 5))
    wanted = F.cross_entropy(logits, labels, torch.tensor(WEIGHTS)).item()
    read = uninterrupted_rates.read()
    assert read["loss"] == pytest.approx(wanted)
    assert resumed.read() == read
    assert alone.read() == pytest.approx(read | {"images": 80, "weight": 2 * read["weight"]})


def test_old_metric_state_without_weights_gives_each_image_weight_1() -> None:
    def metrics(rows: range) -> LossAndAccuracy:
        metric = LossAndAccuracy()
        for row in rows:
            part = slice(row, row + 5)
            metric.append(F.cross_entropy(logits[part], labels[part]), logits[part], labels[part])
        return metric

    torch.manual_seed(5)
    logits, labels = torch.randn(345, 3), torch.arange(345) % 3
    exported = metrics(range(0, 340, 5)).export()  # 68 batches: 64 are summed, 4 buffered
    del exported["weights"]
    exported["sums"] = exported["sums"][:, :3]
    for ranks in (1, 2):
        resumed = metrics(range(0))
        several = {
            name: value if name == "shapes" else torch.cat([value] * ranks)
            for name, value in exported.items()
        }
        resumed.restore(several, 0, 1)
        wanted = F.cross_entropy(logits[:340], labels[:340]).item()
        assert resumed.read()["loss"] == pytest.approx(wanted)


def test_ensemble_loss_is_that_of_mean_probabilities_with_class_weights() -> None:
    torch.manual_seed(4)
    labels, each = torch.arange(12) % 3, torch.randn(2, 12, 3).log_softmax(2)
    for kind in ("plain", "weights and smoothing", "ignored class"):
        loss = LOSSES[kind]()
        member: Any = SimpleNamespace(module=SimpleNamespace(loss=loss))
        passes = [
            ForwardResult(
                Predictions(logs, labels, logs.argmax(1)), None, 0.0, torch.arange(12), "cpu", "32-true"
            )
            for logs in each
        ]
        together = average_probabilities([member, member], passes)
        mean = each.exp().mean(0).log()
        assert together.loss == pytest.approx(loss(mean, labels).item(), rel=1e-5)
        assert (together.predictions.losses is None) == (kind != "plain")


def _train_two_ranks(folder: Path) -> None:
    silence_libraries()
    for accumulate in (1, 3):
        module, data = make(LOSSES["weights"]()), make_data(eval_batch_size=7)
        options = {"accumulate_grad_batches": accumulate, "strategy": "ddp", "devices": 2}
        trainer = make_trainer(folder, enable_checkpointing=False, **options)
        trainer.fit(module, data)
        trainer.test(module, data, verbose=False)
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        if trainer.is_global_zero:
            torch.save((module.state_dict(), metrics), folder / f"{accumulate}.pt")


def test_class_weighted_training_equals_on_any_number_of_devices(tmp_path: Path) -> None:
    run_ranks(lambda: _train_two_ranks(tmp_path), 2)
    for accumulate in (1, 3):
        state, metrics = torch.load(tmp_path / f"{accumulate}.pt", weights_only=True)
        data = make_data()
        data.setup("fit")
        data.setup("test")
        module = make(LOSSES["weights"]())
        wanted = train_one_batch_per_step(module, data, accumulate)
        for own, value in zip(state.values(), [*wanted, torch.tensor(WEIGHTS)], strict=True):
            torch.testing.assert_close(own, value)
        assert metrics["test/loss"] == pytest.approx(loss_of_one_batch(module, data, "test"), rel=1e-4)
