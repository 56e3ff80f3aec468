"""Tests of the configured metrics of SupervisedModule against scikit-learn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.metrics import f1_score, recall_score, roc_auc_score
from small_training import make_data, make_module, make_trainer
from torch import Tensor
from torchmetrics import AUROC, ConfusionMatrix, F1Score, MetricCollection, Recall

from project.errors import InputError
from project.modules.metrics import NamedMetrics, scalars_of
from project.training.ddp.launch import run_ranks

NUM_CLASSES = 3


def make_metrics() -> dict[str, Any]:
    options = {"task": "multiclass", "num_classes": NUM_CLASSES}
    return {
        "f1": F1Score(average="macro", **options),
        "auroc": AUROC(**options),
        "recall": Recall(average="none", **options),
    }


def expected(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    predicted = probabilities.argmax(1)
    recalls = recall_score(labels, predicted, average=None, labels=range(NUM_CLASSES), zero_division=0)
    return {
        "f1": f1_score(labels, predicted, average="macro", zero_division=0),
        "auroc": roc_auc_score(labels, probabilities, multi_class="ovr"),
        "acc": float((predicted == labels).float().mean()),
    } | {f"recall_{index}": value for index, value in enumerate(recalls)}


def fit(folder: Path, ckpt_path: Path | None = None, **options: Any) -> Any:
    """Train two epochs with metrics on all splits, and test; return the module with all metrics."""
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    module = make_module(metrics=make_metrics(), train_metrics=True)
    trainer = make_trainer(folder, [keep], **options)
    seen: list[tuple[Tensor, Tensor]] = []
    inputs_of = module.metric_inputs

    def record(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        pair = inputs_of(outputs, targets)
        if trainer.training:
            seen.append(pair)
        return pair

    module.metric_inputs = record
    data = make_data(eval_batch_size=4)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    trainer.test(module, data, verbose=False)
    metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    return module, data, metrics, seen


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:No positive samples")
def test_metrics_equal_scikit_learn_also_after_resuming(tmp_path: Path) -> None:
    module, data, straight, seen = fit(tmp_path)
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        batches = list(loader)
        assert len(batches[-1][1]) < len(batches[0][1])  # a partial batch
        with torch.no_grad():
            logits = torch.cat([module.eval()(images) for images, _ in batches])
        found = expected(logits.softmax(1), torch.cat([labels for _, labels in batches]))
        for name, value in found.items():
            assert straight[f"{split}/{name}"] == pytest.approx(value, abs=1e-5), (split, name)
    pairs = seen[len(seen) // 2 :]
    found = expected(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))
    for name, value in found.items():
        assert straight[f"train/{name}"] == pytest.approx(value, abs=1e-5), name
    for step in (3, 7, 10, 13):
        assert fit(tmp_path / str(step), tmp_path / f"step={step}.ckpt")[2] == straight, step


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:It is recommended")
def test_metrics_of_two_ranks_equal_scikit_learn(tmp_path: Path) -> None:
    def work() -> None:
        module, _, metrics, seen = fit(tmp_path, devices=2, strategy="ddp")
        half = seen[len(seen) // 2 :]
        torch.save({"metrics": metrics, "seen": half}, tmp_path / f"rank{module.global_rank}.pt")

    run_ranks(work, 2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    pairs = [pair for rank in ranks for pair in rank["seen"]]
    found = expected(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))
    for rank in ranks:
        for name, value in found.items():
            assert rank["metrics"][f"train/{name}"] == pytest.approx(value, abs=1e-5), name


def test_without_metrics_nothing_more_is_measured(tmp_path: Path) -> None:
    module = make_module()
    assert module.metric_names("val") == ["acc", "loss"]
    assert not module.more_val_metrics.names


def test_values_are_split_into_scalars() -> None:
    assert scalars_of("f1", torch.tensor([0.5])) == {"f1": 0.5}
    assert scalars_of("f1", torch.tensor([0.5, 1.0])) == {"f1_0": 0.5, "f1_1": 1.0}
    assert scalars_of("a", {"x": torch.tensor(1.0), "y": torch.tensor([2.0, 3.0])}) == {
        "a_x": 1.0,
        "a_y_0": 2.0,
        "a_y_1": 3.0,
    }
    matrix = ConfusionMatrix(task="multiclass", num_classes=NUM_CLASSES)
    matrix.update(torch.tensor([0, 1]), torch.tensor([0, 2]))
    with pytest.raises(InputError, match=r"^metrics.cm: its value cannot be logged .*got shape \(3, 3\)"):
        scalars_of("cm", matrix.compute())


def test_other_objects_are_no_metrics() -> None:
    collection = MetricCollection(make_metrics())
    with pytest.raises(InputError, match=r"^metrics.all: not a metric .* got MetricCollection\)$"):
        NamedMetrics({"all": collection})  # type: ignore[dict-item]
