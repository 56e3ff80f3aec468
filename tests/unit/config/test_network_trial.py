"""Networks, optimizers and schedules that do not fit are refused by what they say themselves."""

from typing import Any

import pytest
import torch
from conftest import Compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from project.config.derived_values import complete
from project.config.instantiate import build_task, resolve
from project.config.validation.network import refuse_wrong_parts, try_task
from project.errors import InputError
from project.modules.supervised import SupervisedModule

WRONG = [
    ("model=lenet data.resize=8", r"data\.input_shape=\[1, 8, 8\]: too small for this network"),
    ("model=cnn_batchnorm model.kernel_size=27", r"data\.input_shape=\[1, 28, 28\]: too small"),
    ("model=airbench model.whitening_size=40", r"model\.whitening_size=40: must be at most 28, the side of"),
    ("model=vit model.heads=3", r"model\.heads=3: must divide model\.dim=128"),
    ("model=vit model.patch_size=64", r"model\.patch_size=64: larger than the images, .*choose at most 28"),
    ("model=resnet model.depth=21", r"model\.depth=21: choose 10, 18, 34, or 6n \+ 2"),
    (
        "model=torchvision model.name=resnet1",
        r"model\.name=resnet1: not a classification .* did you mean resnet18",
    ),
    ("model=torchvision model.name=inception_v3", r"model\.name=inception_v3: does not accept images"),
]
LATER = [
    ("model=torchvision model.freeze=true", r"model\.freeze=true: needs pretrained weights"),
    ("model=torchvision model.weights=no.pth", r"model\.weights=no\.pth: no such file; give a file"),
    ("scheduler=cosine trainer.max_epochs=-1", r"trainer\.max_epochs=-1: this schedule needs a known length"),
    ("scheduler=multistep trainer.max_epochs=-1", r"trainer\.max_epochs=-1: this schedule needs a known"),
    (
        "model=mlp scheduler=linear +scheduler.role_ends.head=0.5",
        r"scheduler\.role_ends\.head: choose from none",
    ),
    (
        "model=airbench scheduler=linear +scheduler.role_ends.haed=0.5",
        r"role_ends\.haed: choose from whitening",
    ),
    ("+optim.eps=-1", r"optim: Invalid epsilon value"),
]
LABELS = "task=multilabel data=multi_mnist"
METRICS = [
    (
        "+metrics.x._target_=torchmetrics.F1Score +metrics.x.task=binary",
        r"metrics\.x: BinaryF1Score does not fit the task, with predictions float32 \(B, 10\) and targets "
        r"int64 \(B\) \(.*same shape.*\); leave out metrics\.x\.task, which follows from the task",
    ),
    (
        "+metrics.x._target_=torchmetrics.F1Score +metrics.x.num_classes=5",
        r"leave out metrics\.x\.num_classes, which follows",
    ),
    ("+metrics.x._target_=torchmetrics.R2Score", r"R2Score .*name a metric of class probabilities \(B, K\)"),
    ("+metrics.x._target_=torchmetrics.MeanMetric", r"MeanMetric does not fit"),
    ("+metrics.x._target_=torchmetrics.text.BLEUScore", r"BLEUScore does not fit"),
    ("+metrics.x._target_=torchmetrics.retrieval.RetrievalMAP", r"'indexes'\); name a metric of class"),
    (
        "+metrics.x._target_=torchmetrics.image.StructuralSimilarityIndexMeasure",
        r"StructuralSimilarityIndexMeasure does not fit",
    ),
    ("+metrics.x._target_=torchmetrics.ConfusionMatrix", r"metrics\.x: its value cannot be logged"),
    (
        "experiment=diabetes +metrics.x._target_=torchmetrics.AUROC +metrics.x.task=binary",
        r"BinaryAUROC does not fit the task, with predictions float32 \(B\) .*name a metric of real values",
    ),
    (
        f"{LABELS} +metrics.x._target_=torchmetrics.F1Score +metrics.x.task=multiclass",
        r"leave out metrics\.x\.task and metrics\.x\.num_classes, which follow from",
    ),
]
FITTING = [
    "data=synthetic data.num_classes=1000 +metrics.a._target_=torchmetrics.AUROC "
    "+metrics.b._target_=torchmetrics.CohenKappa",
    "+metrics.a._target_=torchmetrics.Recall +metrics.a.average=none "
    "+metrics.b._target_=torchmetrics.CalibrationError +metrics.c._target_=torchmetrics.MatthewsCorrCoef",
    f"{LABELS} +metrics.a._target_=torchmetrics.AUROC "
    "+metrics.b._target_=torchmetrics.MeanSquaredError +metrics.c._target_=torchmetrics.ExactMatch",
    "experiment=diabetes +metrics.a._target_=torchmetrics.PearsonCorrCoef "
    "+metrics.b._target_=torchmetrics.ExplainedVariance +metrics.c._target_=torchmetrics.SpearmanCorrCoef",
]


@pytest.mark.parametrize(("overrides", "line"), METRICS)
def test_metrics_that_do_not_fit_the_task_are_refused(composer: Compose, overrides: str, line: str) -> None:
    config = composer(*overrides.split())
    complete(config)
    plain = resolve(_without_hydra(config))
    with pytest.raises(InputError, match=line) as raised:
        try_task(build_task(plain), plain)
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:Metric .* will save all targets")
@pytest.mark.parametrize("overrides", FITTING)
def test_metrics_that_fit_the_task_are_accepted(composer: Compose, overrides: str) -> None:
    config = composer(*overrides.split())
    complete(config)
    plain = resolve(_without_hydra(config))
    try_task(module := build_task(plain), plain)
    assert not any(metric.update_count for metric in module._configured_metrics.values())


@pytest.mark.parametrize(("overrides", "line"), [*WRONG, *LATER])
def test_a_run_refuses_what_does_not_fit(composer: Compose, overrides: str, line: str) -> None:
    config = resolve(_without_hydra(composer(*overrides.split())))
    with pytest.raises(InputError, match=line) as raised:
        try_task(build_task(config), config)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("overrides", "line"), [*WRONG, *METRICS])
def test_a_sweep_refuses_parts_that_do_not_fit(composer: Compose, overrides: str, line: str) -> None:
    config = composer(*overrides.split())
    complete(config)
    state = torch.get_rng_state()
    with pytest.raises(InputError, match=line):
        refuse_wrong_parts(config)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Metric .* will save all targets")
def test_a_sweep_tries_metrics_once_for_jobs_that_share_them(
    composer: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []
    check = SupervisedModule.check_metrics

    def counted(self: SupervisedModule, *arguments: Any) -> None:
        tried.append(self)
        check(self, *arguments)

    monkeypatch.setattr(SupervisedModule, "check_metrics", counted)
    for job in ("seed=1", "seed=2", "optim.lr=0.1 model=cnn", f"{LABELS} seed=1"):
        config = composer("model=mlp", "metrics=classification", *job.split())
        complete(config)
        HydraConfig.instance().cfg = None  # as in the process of a sweep
        refuse_wrong_parts(config)
    assert len(tried) == 3  # another learning rate is another optimizer


@pytest.mark.parametrize(
    "model", ["cnn", "mlp", "vit", "resnet", "rnn", "airbench", "cnn_batchnorm", "torchvision"]
)
def test_a_trial_changes_nothing(composer: Compose, model: str) -> None:
    config = _without_hydra(composer(f"model={model}", "optim=sgd", "scheduler=onecycle"))
    refuse_wrong_parts(config)
    plain = resolve(config)
    module = build_task(plain)
    before, state = (
        {name: value.clone() for name, value in module.state_dict().items()},
        torch.get_rng_state(),
    )
    try_task(module, plain)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(part.training for part in module.network.modules())


def test_what_the_cpu_lacks_is_left_to_the_run(composer: Compose) -> None:
    plain = resolve(_without_hydra(composer("model=mlp")))
    module = build_task(plain)
    module.network.register_forward_pre_hook(_need_gpu)
    try_task(module, plain)


def _need_gpu(*_: object) -> None:
    raise RuntimeError("this operation needs CUDA")


def _without_hydra(config: DictConfig) -> DictConfig:
    with open_dict(config):
        del config["hydra"]
    return config
