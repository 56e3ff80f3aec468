"""Tests of own metrics on all splits against scikit-learn: one or two ranks, straight or resumed."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score, roc_auc_score
from small_training import make_trainer
from test_tasks import Patterns, network
from torch import Tensor
from torchmetrics import AUROC, AveragePrecision, F1Score, MeanAbsoluteError, Metric, R2Score

from project.modules.classifier import ImageClassifier
from project.modules.multilabel import MultilabelClassifier
from project.modules.regression import Regressor
from project.training.ddp.launch import run_ranks

SGD = partial(torch.optim.SGD, lr=0.05)
COUNTS = {"train": 70, "val": 20, "test": 57}  # the last batches are partial


class Range(Metric):
    """Difference between the 90th and the 10th percentile of all predictions; the states are lists."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("seen", [], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        self.seen.append(predictions.flatten())

    def compute(self) -> Tensor:
        seen = self.seen if isinstance(self.seen, Tensor) else torch.cat(self.seen)
        return seen.quantile(0.9) - seen.quantile(0.1)


def span(predictions: Any) -> float:
    return float(np.quantile(predictions, 0.9) - np.quantile(predictions, 0.1))


MULTICLASS = {"task": "multiclass", "num_classes": 3}
MULTILABEL = {"task": "multilabel", "num_labels": 3}
KINDS: dict[str, tuple[Any, int, dict[str, Any], Any]] = {  # module, outputs, metrics, values expected
    "class": (
        ImageClassifier,
        3,
        {"f1": F1Score(average="macro", **MULTICLASS), "auroc": AUROC(**MULTICLASS), "range": Range()},
        lambda p, y: {
            "f1": f1_score(y, p.argmax(1), average="macro", zero_division=0),
            "auroc": roc_auc_score(y, p, multi_class="ovr"),
            "range": span(p),
        },
    ),
    "multilabel": (
        partial(MultilabelClassifier, num_labels=3),
        3,
        {"ap": AveragePrecision(**MULTILABEL), "auroc": AUROC(**MULTILABEL), "range": Range()},
        lambda p, y: {
            "ap": average_precision_score(y, p, average="macro"),
            "auroc": roc_auc_score(y, p, average="macro"),
            "range": span(p),
        },
    ),
    "real": (
        partial(Regressor, num_targets=2),
        2,
        {"own_r2": R2Score(), "own_mae": MeanAbsoluteError(), "range": Range()},
        lambda p, y: {"own_r2": r2_score(y, p), "own_mae": mean_absolute_error(y, p), "range": span(p)},
    ),
}


def fit_and_test(kind: str, folder: Path, num_ranks: int, ckpt_path: Path | None = None) -> None:
    """Train two epochs and test; each rank writes its metrics, and the inputs of metrics by split."""

    def work() -> None:
        make, outputs, metrics, _ = KINDS[kind]
        module = make(network(outputs), optimizer=SGD, metrics=metrics, train_metrics=True)
        keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        options = {"devices": num_ranks, "strategy": "ddp"} if num_ranks > 1 else {}
        trainer = make_trainer(folder, [keep], **options)
        seen: dict[str, list[tuple[Tensor, Tensor]]] = {"train": [], "val": [], "test": []}
        inputs_of = module.metric_inputs

        def record(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            pair = inputs_of(outputs, targets)
            split = "train" if trainer.training else "test" if trainer.testing else "val"
            epoch = trainer.current_epoch
            seen[split].append((pair[0].detach().clone(), pair[1].clone(), torch.tensor(epoch)))
            return pair

        module.metric_inputs = record
        data = Patterns(kind, outputs)
        trainer.fit(module, data, ckpt_path=ckpt_path)
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        trainer.test(module, data, verbose=False)
        found |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        torch.save({"metrics": found, "seen": seen}, folder / f"rank{trainer.global_rank}.pt")

    folder.mkdir(exist_ok=True)
    run_ranks(work, num_ranks) if num_ranks > 1 else work()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:It is recommended")
@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_own_metrics_of_all_splits_equal_scikit_learn(kind: str, num_ranks: int, tmp_path: Path) -> None:
    fit_and_test(kind, tmp_path, num_ranks)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(num_ranks)]
    straight = [rank["metrics"] for rank in ranks]
    for split, count in COUNTS.items():
        triples = [triple for rank in ranks for triple in rank["seen"][split]]
        last = max(int(epoch) for *_, epoch in triples)
        pairs = [triple[:2] for triple in triples if split == "test" or int(triple[2]) == last]
        predictions, targets = (torch.cat(parts).numpy() for parts in zip(*pairs, strict=True))
        assert len(targets) == count, split
        for name, value in KINDS[kind][3](predictions, targets).items():
            for metrics in straight:
                assert metrics[f"{split}/{name}"] == pytest.approx(value, rel=1e-4, abs=1e-5), (split, name)
    resumed = tmp_path / "resumed"
    fit_and_test(kind, resumed, num_ranks, tmp_path / "step=8.ckpt")  # three steps into the second epoch
    assert [torch.load(resumed / f"rank{rank}.pt")["metrics"] for rank in range(num_ranks)] == straight
