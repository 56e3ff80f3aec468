"""Swept keys that apply only with some options."""

from collections import Counter

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from project.errors import InputError
from project.sweeps.sweepers.conditions import Conditions
from project.sweeps.sweepers.search_space import SearchSpace

ONLY_IF = {
    "optim.momentum": "optim=sgd",
    "optim.nesterov": "optim.momentum=0.9",
    "model.depth": "model=resnet,vit",
}
SWEPT = ["optim.nesterov", "optim.momentum", "optim", "+model.depth"]


@pytest.mark.parametrize(
    ("point", "kept"),
    [
        ("optim.nesterov=1 optim.momentum=0.9 optim=sgd", "optim.nesterov=1 optim.momentum=0.9 optim=sgd"),
        ("optim.nesterov=1 optim.momentum=0 optim=sgd", "optim.momentum=0 optim=sgd"),
        ("optim.nesterov=1 optim.momentum=0.9 optim=adam", "optim=adam"),
        ("optim=adam +model.depth=3 seed=1", "optim=adam +model.depth=3 seed=1"),
    ],
)
def test_keys_apply_only_if_those_that_they_depend_on_do(point: str, kept: str) -> None:
    conditions = Conditions(ONLY_IF, ["model=vit", "trainer.max_epochs=1"], SWEPT)
    assert conditions.keep(point.split()) == kept.split()


def test_a_shared_value_can_exclude_a_key() -> None:
    assert Conditions(ONLY_IF, ["model=mlp"], SWEPT).keep(["+model.depth=3", "optim=adam"]) == ["optim=adam"]


@pytest.mark.parametrize(
    ("only_if", "says"),
    [
        ({"optim.momentum": "sgd"}, "hydra.sweeper.only_if.optim.momentum=sgd: not a condition"),
        ({"optim.momentum": "optim="}, "not a condition (expected KEY=VALUE, such as optim=sgd)"),
        ({"optim.momentun": "optim=sgd"}, "optim.momentun has no values on the command line; did you mean"),
        ({"optim.momentum": "optin=sgd"}, "optin has no values on the command line; did you mean optim?"),
        ({"optim": "optim.momentum=0", "optim.momentum": "optim=sgd"}, "conditions in a circle: "),
    ],
)
def test_wrong_conditions_are_refused(only_if: dict[str, str], says: str) -> None:
    with pytest.raises(InputError) as error:
        Conditions(only_if, [], ["optim", "optim.momentum"])
    assert says in str(error.value)


def test_samplers_choose_the_values_that_apply() -> None:
    space = {
        "optim.momentum": FloatDistribution(0, 0.9, step=0.3),
        "optim": CategoricalDistribution(["sgd", "adam"]),
        "+model.depth": IntDistribution(1, 4, log=True),
    }
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    points = SearchSpace([], space, Conditions({"optim.momentum": "optim=sgd"}, [], space))
    seen: Counter[str] = Counter()
    for number in range(30):
        trial = points.ask(study)
        assert trial.distributions == {key: space[key] for key in trial.params}
        assert ("optim.momentum" in trial.params) == (trial.params["optim"] == "sgd")
        assert "+model.depth" in trial.params
        seen[trial.params["optim"]] += 1
        study.tell(trial, number)
    assert min(seen["sgd"], seen["adam"]) > 0
