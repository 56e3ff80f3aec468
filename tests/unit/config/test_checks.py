"""Wrong input is refused in one line that names key, value, what is allowed and the nearest right name."""

import pytest
from conftest import CONF, Compose
from hydra.errors import HydraException
from omegaconf import OmegaConf

from project.config.signatures import Signature, signature_of
from project.config.suggestions import explain_composition
from project.config.validation import find_problems
from project.config.validation.command_request import last_of_each
from project.config.validation.declared_keys import flat
from project.config.validation.values import LIBRARIES, RUN, TRAINER


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ("optim.lr=abc", "optim.lr=abc: expected a number, got 'abc'; for example optim.lr=0.001"),
        ("optim.lr=-1", "optim.lr=-1: must be above 0 and at most 1000"),
        ("optim.lr=0", "optim.lr=0: must be above 0 and at most 1000"),
        ("optim.lr=inf", "optim.lr=inf: must be above 0 and at most 1000"),
        ("optim.lr=null", "optim.lr=null: expected a number, got null; for example optim.lr=0.001"),
        ("optim.lr=true", "optim.lr=true: expected a number, got true; for example optim.lr=0.001"),
        (
            "optim.betas=3",
            "optim.betas=3: expected a list, got 3; for example optim.betas=[0.9,0.999]",
        ),
        ("optim.betas=[0.9,3]", "optim.betas=[0.9, 3]: must be at least 0 and below 1"),
        ("data.batch_size=0", "data.batch_size=0: must be at least 1"),
        (
            "data.batch_size=1.5",
            "data.batch_size=1.5: expected a whole number, got 1.5; for example data.batch_size=16",
        ),
        (
            "data.val_size=-0.1",
            "data.val_size=-0.1: expected a number at least 0 and below 1, or a whole number at least 0, "
            "got -0.1; for example data.val_size=0.1",
        ),
        ("data.folds=1", "data.folds=1: must be at least 2"),
        ("data.folds=x", "data.folds=x: expected a whole number, got 'x'"),
        ("data.fold=-1", "data.fold=-1: must be at least 0"),
        (
            "data.fold=1",
            "data.fold=1: no effect without data.folds; set data.folds=5, for example",
        ),
        (
            "data.folds=5 data.fold=5",
            "data.fold=5: must be at least 0 and at most 4, with data.folds=5",
        ),
        ("seed=-1", "seed=-1: must be at least 0 and at most 4294967295"),
        ("seed=x", "seed=x: expected a whole number, got 'x'; for example seed=1"),
        ("compile=1", "compile=1: expected true or false, got 1; for example compile=false"),
        ("mode=maxx", "mode=maxx: did you mean max?"),
        ("mode=min", "mode=min: monitor=val/acc is better when maximal; set mode=max"),
        ("monitor=val/ac", "monitor=val/ac: did you mean val/acc?"),
        (
            "+trainer.enable_progress_bar=false",
            "trainer.enable_progress_bar: is not read; callbacks.progress shows progress; remove it with "
            "'~callbacks.progress'",
        ),
        (
            "+trainer.logger=false",
            "trainer.logger: is not read; set loggers in the group logger; logger=none logs nothing",
        ),
        (
            "+trainer.callbacks=[]",
            "trainer.callbacks: is not read; set callbacks in the group callbacks",
        ),
        (
            "trainer.check_val_every_n_epoch=null trainer.val_check_interval=0.5",
            "trainer.check_val_every_n_epoch=null: validates after a number of batches; "
            "set trainer.val_check_interval=100, for example, or trainer.check_val_every_n_epoch=1",
        ),
        ("trainer.precision=b16", "trainer.precision=b16: did you mean bf16 or 16?"),
        ("trainer.accelerator=gpus", "trainer.accelerator=gpus: did you mean gpu?"),
        (
            "trainer.max_epochs=0",
            "trainer.max_epochs=0: expected -1, or a whole number at least 1, got 0; for example "
            "trainer.max_epochs=10",
        ),
        (
            "trainer.max_epochs=null",
            "trainer.max_epochs=null: expected -1, or a whole number at least 1, got null; for example "
            "trainer.max_epochs=10",
        ),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0: must be at least 1"),
        ("loss.label_smoothing=2", "loss.label_smoothing=2: must be at least 0 and at most 1"),
        ("model=mlp model.activation=rellu", "model.activation=rellu: did you mean relu or gelu?"),
        (
            "model=mlp model.widths=128",
            "model.widths=128: expected a list, got 128; for example model.widths=[128]",
        ),
        ("data=image_folder", "data.path: not given; set data.path=…"),
        (
            "data=image_folder data.path=/nowhere",
            "data.path=/nowhere: no such folder; give a folder that contains a folder for each class",
        ),
        ("data.resize=0", "data.resize=0: expected a side in pixels, or [height,width]"),
    ],
)
def test_a_wrong_value_is_one_line(composer: Compose, overrides: str, line: str) -> None:
    assert list(dict.fromkeys(find_problems(composer(*overrides.split())))) == [line]


def test_all_problems_are_told_at_once(composer: Compose) -> None:
    problems = list(find_problems(composer("optim.lr=-1", "data.batch_size=x", "mode=up")))
    assert [problem.partition("=")[0] for problem in problems] == ["data.batch_size", "mode", "optim.lr"]


@pytest.mark.parametrize(
    "overrides",
    [
        "optim.lr=1",  # a whole number is a number
        "trainer.devices=auto",
        "trainer.devices=[0,1]",
        "trainer.limit_train_batches=5",
        "data.val_size=100",
        "data.resize=[20,24]",
        "monitor=val/loss mode=min",
        "model=mlp model.widths=[]",
        "trainer.max_epochs=-1 trainer.max_steps=10",
        "loss.class_weights=[1,1,1,1,1,1,1,1,1,2]",
        "name=2",
        "augment=strong augment.rotate=5",
        "trainer=ddp",
        "callbacks.ema.decay=0.99",
        "+trainer.benchmark=true",
        "trainer.check_val_every_n_epoch=null trainer.val_check_interval=500",
        "trainer.batches_per_hook=8 trainer.gradient_clip_val=1",
        "loss=mse loss._target_=sweep_objectives.QuadraticLoss +loss.x=1 monitor=train/f1",
        "loss=mse loss._target_=sweep_objectives.Distillation +loss.teacher={num_classes:1000}",
    ],
)
def test_a_right_value_passes(composer: Compose, overrides: str) -> None:
    assert list(find_problems(composer(*overrides.split()))) == []


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ("modle=cnn", "modle=cnn: no key modle; did you mean mode or model?"),
        ("model=cnnn", "model=cnnn: no such option; did you mean cnn?"),
        ("optim.lrr=1", "optim.lrr=1: no key optim.lrr; did you mean optim.lr"),
        ("lr=0.1", "lr=0.1: no key lr; did you mean optim.lr?"),
        ("trainer.epochs=3", "trainer.epochs=3: no key trainer.epochs; did you mean trainer.max_epochs"),
        ("scheduler=cosin", "scheduler=cosin: no such option; did you mean cosine"),
        (
            "model.hidden_dim.x=1",
            "model.hidden_dim.x=1: no key model.hidden_dim.x; model.hidden_dim is a single value",
        ),
        (
            "~callbacks.early_stoping",
            "~callbacks.early_stoping: no key callbacks.early_stoping; did you mean callbacks.early_stopping",
        ),
        ("foo=[1", "foo=[1: not an override; write key=value"),
        ("experiment=mnist_mpl", "experiment=mnist_mpl: no such option; did you mean mnist_mlp"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest_one(composer: Compose, overrides: str, line: str) -> None:
    with pytest.raises(HydraException, match=r".") as raised:
        composer(*overrides.split())
    lines = explain_composition(raised.value, overrides.split(), CONF, "train")
    assert len(lines) == 1
    assert lines[0].startswith(line)


def test_every_declared_key_exists(composer: Compose) -> None:
    # A key that was renamed must not leave a check behind that checks nothing.
    known = {key for file in CONF.glob("trainer/*.yaml") for key in OmegaConf.load(file)}
    assert set(TRAINER) - {"num_sanity_val_steps"} <= known
    leaves = dict(flat("", OmegaConf.to_container(composer(), resolve=False)))
    assert set(RUN) <= set(leaves)
    for target, table in LIBRARIES.items():
        assert set(table) <= _arguments(target)


def _arguments(target: str) -> set[str]:
    if not target.endswith("."):
        found = signature_of(target)
        return set(found.arguments) if isinstance(found, Signature) else set()
    modules = [name for name in ("Adam", "SGD", "RMSprop") if target == "torch.optim."]
    return {argument for name in modules for argument in _arguments(f"torch.optim.{name}")}


def test_a_class_that_was_added_judges_its_values_itself(composer: Compose) -> None:
    config = composer("model=mlp", "+model.width=0.5", "optim.lr=2000", "callbacks.ema.decay=1")
    config.model._target_ = "sweep_objectives.Own"  # which has no source
    assert not any("model.width=0.5: " in line for line in find_problems(config))
    config.model._target_ = "project.modules.networks.resnet.ResNet"
    assert "model.width=0.5: expected a whole number, got 0.5" in list(find_problems(config))
    assert any(line.startswith("optim.lr=2000: must be") for line in find_problems(config))
    assert any(line.startswith("callbacks.ema.decay=1: must be") for line in find_problems(config))


@pytest.mark.parametrize(
    ("given", "kept", "lines"),
    [
        (
            "optim.lr=1 seed=3 optim.lr=2",
            "seed=3 optim.lr=2",
            "optim.lr=2: overrides optim.lr=1",
        ),
        ("a=1 a=2 a=1", "a=1", "a=1: overrides a=2"),
        ("a=1 a=1", "a=1", ""),
        ("+a.b=1 a.b=2", "+a.b=2", "+a.b=2: overrides +a.b=1"),
        ("+a.b=1 +a.b=2 ++a.b=3", "++a.b=3", "++a.b=3: overrides +a.b=1 or +a.b=2"),
        ("+experiment=x", "experiment=x", ""),
        ("++experiment=x,y -m", "experiment=x,y -m", ""),
        ("experiment=x +experiment=y", "experiment=y", "experiment=y: overrides experiment=x"),
        (
            "experiment=x seed=1 experiment=null",
            "seed=1",
            "experiment=null: overrides experiment=x",
        ),
        ("--config-path=mine +experiment=x", "--config-path=mine +experiment=x", ""),
        ("model=a model=b model.c=1", "model=b model.c=1", "model=b: overrides model=a"),
        ("+modle=a +optim.lr=1", "+modle=a +optim.lr=1", ""),
        ("~a a=1 =2 =3 --cfg job", "~a a=1 =2 =3 --cfg job", ""),
    ],
)
def test_the_last_override_of_a_key_counts(given: str, kept: str, lines: str) -> None:
    assert last_of_each(given.split(), CONF / "train.yaml") == (kept.split(), lines.splitlines())
