"""Tests of evaluation scores against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn import metrics as skl
from sklearn.calibration import calibration_curve

from project.callbacks.predictions import class_results, classification_report
from project.inference.evaluate import metrics
from project.inference.evaluate.metrics import Predictions


def predictions_of(logits: torch.Tensor, labels: torch.Tensor) -> Predictions:
    return Predictions(logits.log_softmax(1), labels, logits.argmax(1))


def cases() -> dict[str, Predictions]:
    """Return predictions by the name of their special case."""
    draws = torch.Generator().manual_seed(8)

    def predicted(labels: torch.Tensor, classes: int, lift: float = 1.0, never: int | None = None):
        logits = torch.randn(len(labels), classes, generator=draws, dtype=torch.float64)
        logits[torch.arange(len(labels)), labels] += lift
        if never is not None:
            logits[:, never] -= 20
        return predictions_of(logits, labels)

    def labels(low: int, high: int, images: int = 400) -> torch.Tensor:
        return torch.randint(low, high, (images,), generator=draws)

    return {
        "all classes": predicted(labels(0, 5), 5),
        "one absent and chosen": predicted(labels(0, 4), 5),
        "one never chosen": predicted(labels(0, 5), 5, never=2),
        "one absent and never chosen": predicted(labels(0, 4), 5, never=4),
        "one absent, another never chosen": predicted(labels(1, 5), 5, never=2),
        "perfect": predicted(labels(0, 5), 5, lift=12),
        "always wrong": predicted(labels(0, 3), 3, lift=-12),
        "one class of images": predicted(labels(1, 2), 3),
        "one class, all right": predicted(labels(1, 2), 3, lift=12),
        "two classes": predicted(labels(0, 2), 2),
        "100 classes, few images": predicted(labels(0, 100, images=90), 100, lift=3),
    }


@pytest.mark.parametrize("kind", cases())
def test_scores_equal_scikit_learn(kind: str) -> None:
    found = cases()[kind]
    labels, chosen, shares = found.labels.numpy(), found.predicted.numpy(), found.probabilities.numpy()
    classes = list(range(found.num_classes))
    values = {name: value.tolist() for name, value in metrics.compute_metrics(found).items()}
    macro = skl.precision_recall_fscore_support(labels, chosen, average="macro", zero_division=0)
    assert [values[f"macro_{name}"] for name in ("precision", "recall", "f1")] == pytest.approx(macro[:3])
    each = skl.precision_recall_fscore_support(labels, chosen, zero_division=0)
    named = np.unique([*labels, *chosen])
    for name, wanted in zip(("precision", "recall", "f1", "support"), each, strict=True):
        assert np.array(values[name])[named].tolist() == pytest.approx(wanted.tolist()), name
        others = np.delete(values[name], named)
        assert (np.isnan(others) | (name == "support")).all(), name
    assert values["accuracy"] == pytest.approx(skl.accuracy_score(labels, chosen))
    if found.num_classes > 5:
        top = skl.top_k_accuracy_score(labels, shares, k=5, labels=classes)
        assert values["top5_accuracy"] == pytest.approx(top)
    assert values["nll"] == pytest.approx(skl.log_loss(labels, shares, labels=classes))
    brier = skl.brier_score_loss(labels, shares, labels=classes, scale_by_half=False)
    assert values["brier"] == pytest.approx(brier)
    matrix = skl.confusion_matrix(labels, chosen, labels=classes)
    assert found.confusion().tolist() == matrix.tolist()
    accuracy, confidence = calibration_curve(found.is_correct.numpy(), found.confidence.numpy(), n_bins=15)
    bins = metrics.reliability(found)
    filled = bins["images"] > 0
    assert bins["accuracy"][filled].tolist() == pytest.approx(accuracy.tolist())
    assert bins["confidence"][filled].tolist() == pytest.approx(confidence.tolist())
    results = class_results(found.confusion(), list(map(str, classes)))
    told = classification_report(found.confusion(), list(map(str, classes)))
    assert [result.f1 for result in results] == pytest.approx(values["f1"], nan_ok=True)
    assert f"macro F1 {macro[2]:.4f}" in told
