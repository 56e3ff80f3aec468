"""Tests that the metrics of an epoch are those of scikit-learn, also after resuming within the epoch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from small_training import make_trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MaxMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC, MulticlassF1Score
from torchmetrics.regression import PearsonCorrCoef

from project.training.ddp.launch import run_ranks

NUM_CLASSES, NUM_TRAIN, NUM_VAL, BATCH_SIZE = 3, 52, 22, 8  # the last batches are partial


class PlainModule(L.LightningModule):
    """LightningModule as users write it, with metrics of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Linear(5, NUM_CLASSES)
        self.train_acc = MulticlassAccuracy(NUM_CLASSES, average="micro")
        self.train_scores = MetricCollection(
            {"f1": MulticlassF1Score(NUM_CLASSES), "recall": MulticlassAccuracy(NUM_CLASSES)}
        )
        self.train_auroc = MulticlassAUROC(NUM_CLASSES)
        self.pearson = PearsonCorrCoef()
        self.val_acc = MulticlassAccuracy(NUM_CLASSES, average="micro")
        self.val_auroc = MulticlassAUROC(NUM_CLASSES)
        self.val_best = MaxMetric()
        self.seen: dict[str, list[tuple[Tensor, Tensor]]] = {"train": [], "val": []}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = batch
        logits = self.network(inputs)
        loss = F.cross_entropy(logits, targets)
        probabilities = logits.detach().softmax(1)
        self.seen["train"].append((probabilities, targets))
        self.train_acc(probabilities, targets)
        self.train_auroc.update(probabilities, targets)
        self.train_scores.update(probabilities, targets)
        self.pearson.update(probabilities[:, 0], (targets == 0).float())
        self.log("train_acc", self.train_acc, on_epoch=True)
        self.log("train_auroc", self.train_auroc, on_step=False, on_epoch=True)
        self.log("pearson", self.pearson, on_step=False, on_epoch=True)
        self.log("train_loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        self.log("largest_loss", loss, on_step=False, on_epoch=True, reduce_fx="max", sync_dist=True)
        self.log("images", float(len(targets)), on_step=False, on_epoch=True, reduce_fx=sum, sync_dist=True)
        return loss

    def on_train_epoch_start(self) -> None:
        self.seen["train"].clear()

    def on_train_epoch_end(self) -> None:
        self.log_dict(self.train_scores.compute(), sync_dist=True)
        self.train_scores.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, targets = batch
        probabilities = self.network(inputs).softmax(1)
        self.seen["val"].append((probabilities, targets))
        self.val_acc(probabilities, targets)
        self.val_auroc.update(probabilities, targets)
        self.log("val_acc", self.val_acc, on_epoch=True)
        self.log("val_loss", F.cross_entropy(probabilities.log(), targets), sync_dist=True)

    def on_validation_epoch_start(self) -> None:
        self.seen["val"].clear()

    def on_validation_epoch_end(self) -> None:
        auroc = self.val_auroc.compute()
        self.val_best.update(auroc)
        self.val_auroc.reset()
        self.log_dict({"val_auroc": auroc, "val_best": self.val_best.compute()}, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.2)


class PlainData(L.LightningDataModule):
    """Random inputs; the classes are balanced."""

    def __init__(self, batch_size: int = BATCH_SIZE) -> None:
        super().__init__()
        self.batch_size = batch_size
        inputs = torch.from_numpy(np.random.default_rng(3).normal(size=(NUM_TRAIN + NUM_VAL, 5)))
        targets = torch.arange(NUM_TRAIN + NUM_VAL) % NUM_CLASSES
        self.train, self.val = (
            TensorDataset(inputs[part].float(), targets[part])
            for part in (slice(0, NUM_TRAIN), slice(NUM_TRAIN, None))
        )

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, self.batch_size)


def fit(folder: Path, ckpt_path: Path | None = None, **options: Any) -> tuple[dict[str, float], PlainModule]:
    """Train two epochs, with a checkpoint after each optimizer step; return the metrics and the module."""
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    module = PlainModule()
    trainer = make_trainer(folder, [keep], val_check_interval=0.5, **options)
    trainer.fit(module, PlainData(BATCH_SIZE // trainer.world_size), ckpt_path=ckpt_path)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}, module


def expected(seen: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    probabilities, targets = (torch.cat(parts).numpy() for parts in zip(*seen, strict=True))
    predicted = probabilities.argmax(1)
    return {
        "acc": accuracy_score(targets, predicted),
        "auroc": roc_auc_score(targets, probabilities, multi_class="ovr"),
        "f1": f1_score(targets, predicted, average="macro"),
        "loss": -np.log(probabilities[np.arange(len(targets)), targets]).mean(),
        "largest_loss": max(float(F.nll_loss(p.log(), t)) for p, t in seen),
        "pearson": np.corrcoef(probabilities[:, 0], targets == 0)[0, 1],
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_metrics_of_any_module_are_right_and_the_same_after_resuming(tmp_path: Path) -> None:
    straight, module = fit(tmp_path)
    train, val = expected(module.seen["train"]), expected(module.seen["val"])
    for name in ("acc", "auroc"):
        assert straight[f"train_{name}"] == pytest.approx(train[name], abs=1e-6)
        assert straight[f"val_{name}"] == pytest.approx(val[name], abs=1e-6)
    assert straight["f1"] == pytest.approx(train["f1"], abs=1e-6)
    assert straight["train_loss_epoch"] == pytest.approx(train["loss"], abs=1e-6)
    assert straight["largest_loss"] == pytest.approx(train["largest_loss"], abs=1e-6)
    assert straight["pearson"] == pytest.approx(train["pearson"], abs=1e-5)
    assert straight["images"] == NUM_TRAIN
    assert straight["val_best"] >= straight["val_auroc"]
    for step in (1, 3, 6, 7, 8, 10, 11, 13):
        resumed, _ = fit(tmp_path / str(step), tmp_path / f"step={step}.ckpt")
        assert resumed == straight, step


def fit_on_ranks(folder: Path, num_ranks: int, ckpt_path: Path | None = None) -> None:
    """Train on several ranks, each of which writes its metrics and what its module has seen."""

    def work() -> None:
        strategy = "ddp" if num_ranks > 1 else "auto"
        metrics, module = fit(folder, ckpt_path, devices=num_ranks, strategy=strategy)
        seen = {split: list(pairs) for split, pairs in module.seen.items()}
        torch.save({"metrics": metrics, "seen": seen}, folder / f"rank{module.global_rank}.pt")

    folder.mkdir(exist_ok=True)
    run_ranks(work, num_ranks) if num_ranks > 1 else work()


def results_of(folder: Path, num_ranks: int) -> tuple[list[dict[str, float]], dict[str, list[Any]]]:
    """Return the metrics of each rank, and what all ranks have seen."""
    ranks = [torch.load(folder / f"rank{rank}.pt") for rank in range(num_ranks)]
    seen = {split: [pair for rank in ranks for pair in rank["seen"][split]] for split in ("train", "val")}
    return [rank["metrics"] for rank in ranks], seen


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_metrics_of_any_module_are_right_on_two_ranks(tmp_path: Path) -> None:
    fit_on_ranks(tmp_path, 2)
    straight, seen = results_of(tmp_path, 2)
    assert sum(len(targets) for _, targets in seen["train"]) == NUM_TRAIN
    train, val = expected(seen["train"]), expected(seen["val"])
    for metrics in straight:
        for name in ("acc", "auroc"):
            assert metrics[f"val_{name}"] == pytest.approx(val[name], abs=1e-6)
        assert metrics["train_acc_epoch"] == pytest.approx(train["acc"], abs=1e-6)
        assert metrics["train_auroc"] == pytest.approx(train["auroc"], abs=1e-6)
        assert metrics["f1"] == pytest.approx(train["f1"], abs=1e-6)
        assert metrics["train_loss_epoch"] == pytest.approx(train["loss"], abs=1e-6)
        assert metrics["images"] == NUM_TRAIN
    fit_on_ranks(tmp_path / "resumed", 2, tmp_path / "step=10.ckpt")
    assert results_of(tmp_path / "resumed", 2)[0] == straight


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_metrics_are_right_after_resuming_on_another_number_of_ranks(
    tmp_path: Path, before: int, after: int, caplog: pytest.LogCaptureFixture
) -> None:
    fit_on_ranks(tmp_path, before)
    fit_on_ranks(tmp_path / "resumed", after, tmp_path / "step=10.ckpt")  # three steps into the second epoch
    resumed, seen_after = results_of(tmp_path / "resumed", after)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(before)]
    seen = [pair for rank in ranks for pair in rank["seen"]["train"][:3]] + seen_after["train"]
    train, val = expected(seen), expected(seen_after["val"])
    for metrics in resumed:
        assert metrics["val_auroc"] == pytest.approx(val["auroc"], abs=1e-6)
        assert metrics["train_acc_epoch"] == pytest.approx(train["acc"], abs=1e-6)
        assert metrics["train_auroc"] == pytest.approx(train["auroc"], abs=1e-6)
        assert metrics["f1"] == pytest.approx(train["f1"], abs=1e-6)
        assert metrics["train_loss_epoch"] == pytest.approx(train["loss"], abs=1e-6)
        assert metrics["largest_loss"] == pytest.approx(train["largest_loss"], abs=1e-6)
        assert metrics["images"] == len(torch.cat([targets for _, targets in seen]))
    if before == 2:
        assert "pearson: its states cannot be reduced from 2 to 1 ranks" in caplog.text
