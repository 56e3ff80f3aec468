"""Confidence intervals of fractions, against SciPy."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from project.runs.intervals import accuracy_interval, f1_interval, num_cases, overlap, wilson


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 50), (50, 50), (5, 10), (9_731, 10_000)])
def test_wilsons_interval_is_scipys_and_has_a_width(hits: int, count: int) -> None:
    known = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    low, high = wilson(hits / count, count)
    assert (low, high) == pytest.approx((known.low, known.high), abs=1e-12)
    assert low <= hits / count <= high
    assert high - low > 0


def test_the_interval_of_f1_follows_from_that_of_the_jaccard_index() -> None:
    hits, false_positives, false_negatives = 40, 3, 7
    union = hits + false_positives + false_negatives
    known = binomtest(hits, union).proportion_ci(0.95, method="wilson")
    low, high = f1_interval(hits, false_positives + false_negatives)
    assert low == pytest.approx(2 * known.low / (1 + known.low))
    assert high == pytest.approx(2 * known.high / (1 + known.high))
    precision, recall = hits / (hits + false_positives), hits / (hits + false_negatives)
    assert low < 2 * precision * recall / (precision + recall) < high
    assert f1_interval(5, 0)[0] < 1 == f1_interval(5, 0)[1]
    assert f1_interval(0, 5)[0] == 0 < f1_interval(0, 5)[1]


def test_an_accuracy_has_an_interval_if_its_images_are_known() -> None:
    metrics = {
        "test/acc": 0.875,
        "test/images": 400.0,
        "test/loss": 0.4,
        "val/acc": 0.9,
        "test/accuracy": 1.0,
    }
    assert accuracy_interval(metrics, "test/acc") == wilson(0.875, 400)
    assert accuracy_interval(metrics, "test/accuracy") == wilson(1.0, 400)
    for name in ("test/loss", "val/acc", "val/f1"):
        assert accuracy_interval(metrics, name) is None
    for broken in (
        {"test/acc": math.nan},
        {"test/images": math.nan},
        {"test/images": 0.0},
        {"test/acc": 1.5},
    ):
        assert accuracy_interval(metrics | broken, "test/acc") is None


def test_an_average_over_classes_has_no_interval() -> None:
    for count in (1, 144, 10_000, 1_000_000):
        for hits in (0, 1, count // 3, count):
            exact = {"val/acc": float(np.float32(hits) / np.float32(count)), "val/images": float(count)}
            assert num_cases(exact, "val/acc") == count
    recalls = np.array([30 / 31, 12 / 17, 5 / 7])  # of classes with 31, 17 and 7 images
    assert math.isnan(num_cases({"val/acc": float(recalls.mean()), "val/images": 55.0}, "val/acc"))


def test_intervals_that_touch_overlap() -> None:
    assert overlap((0.1, 0.2), (0.2, 0.3))
    assert overlap((0.1, 0.9), (0.2, 0.3))
    assert not overlap((0.1, 0.2), (0.21, 0.3))
