"""Tests of configured metrics: arguments that are filled in, directions, and checks of names and monitors."""

import pytest
from conftest import Compose
from omegaconf import open_dict

from project.config.derived_values import complete
from project.config.instantiate import build_task, resolve
from project.config.metrics import metrics_of, mode_of
from project.config.validation import find_problems


def test_arguments_follow_from_task_and_data(composer: Compose) -> None:
    config = composer(
        "metrics=classification",
        "+metrics.own._target_=torchmetrics.Accuracy",
        "+metrics.own.task=multilabel",
        "+metrics.own.num_labels=7",
        "+metrics.exact._target_=torchmetrics.classification.MulticlassExactMatch",
        "+metrics.mean._target_=torchmetrics.MeanMetric",
    )
    complete(config)
    assert dict(config.metrics.f1) == {
        "_target_": "torchmetrics.F1Score",
        "average": "macro",
        "task": "multiclass",
        "num_classes": 10,
    }
    assert config.metrics.auroc.num_classes == 10
    assert "num_labels" not in config.metrics.auroc
    assert config.metrics.own.num_labels == 7
    assert "num_classes" not in config.metrics.own
    assert config.metrics.exact.num_classes == 10
    assert list(config.metrics["mean"]) == ["_target_"]
    assert list(find_problems(config)) == []
    with open_dict(config):
        del config["hydra"]
    module = build_task(resolve(config))
    assert module.metric_names("val") == ["acc", "loss", "f1", "auroc", "own", "exact", "mean"]
    assert module.metric_names("train") == ["acc", "loss"]


@pytest.mark.parametrize(
    ("target", "mode"),
    [
        ("torchmetrics.F1Score", "max"),
        ("torchmetrics.AUROC", "max"),
        ("torchmetrics.CalibrationError", "min"),
        ("torchmetrics.classification.MulticlassAccuracy", "max"),
        ("torchmetrics.MeanSquaredError", "min"),
        ("torchmetrics.R2Score", "max"),
        ("torchmetrics.MeanMetric", ""),
    ],
)
def test_directions_are_those_of_the_classes(target: str, mode: str) -> None:
    assert mode_of({"_target_": target}, "multiclass") == mode


@pytest.mark.parametrize(
    ("overrides", "mode"),
    [
        ([], "max"),
        (["monitor=val/loss"], "min"),
        (["monitor=train/acc"], "max"),
        (["+metrics.e._target_=torchmetrics.CalibrationError", "monitor=val/e"], "min"),
        (["+metrics.e._target_=torchmetrics.Recall", "+metrics.e.average=none", "monitor=val/e_3"], "max"),
        (["task=custom", "task._target_=package.Module", "monitor=val_loss"], "min"),
        (["task=custom", "task._target_=package.Module", "monitor=wer"], "min"),
        (["task=custom", "task._target_=package.Module", "monitor=score"], "max"),
        (["monitor=val/loss", "mode=max"], "max"),
    ],
)
def test_mode_follows_from_the_monitored_metric(composer: Compose, overrides: list[str], mode: str) -> None:
    config = composer(*overrides)
    assert (config.mode, config.callbacks.best.mode) == (mode, mode)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ("metrics=classification monitor=val/f2", "monitor=val/f2: did you mean val/f1"),
        ("metrics=classification monitor=train/f1", "or task.train_metrics=true"),
        ("metrics=classification monitor=train/f1 task.train_metrics=true", ""),
        ("metrics=classification monitor=val/f1", ""),
        ("metrics=classification monitor=val/f1 mode=min", "mode=min: monitor=val/f1 is better when maximal"),
        ("+metrics.loss._target_=torchmetrics.F1Score", "metrics.loss: the task logs a value with this name"),
        ("+metrics.best_f1._target_=torchmetrics.F1Score", "metrics.best_f1: not allowed as a name"),
        ("+metrics.f1._target_=torchmetrics.F1Score +metrics.f1.avg=macro", "F1Score has no avg"),
        ("+metrics.f1._target_=torchmetrics.F1Score +metrics.f1.compute_on_cpu=true", ""),
        ("+metrics.f1._target_=torchmetrics.F1Score +metrics.f1.average=mac", "did you mean macro"),
        (
            "+metrics.all._target_=torchmetrics.MetricCollection",
            "expected torchmetrics.Metric, got nn.Module",
        ),
        ("+metrics.x._target_=os.system", "metrics.x._target_=os.system: not allowed"),
    ],
)
def test_wrong_metrics_are_reported_once(composer: Compose, overrides: str, problem: str) -> None:
    lines = list(find_problems(composer(*overrides.split())))
    assert len(lines) == bool(problem)
    assert all(problem in line for line in lines)


def test_metrics_of_a_task_that_declares_none_are_unknown(composer: Compose) -> None:
    assert metrics_of(composer("task=custom", "task._target_=package.Module")) == {}
