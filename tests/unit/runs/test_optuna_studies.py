"""Optuna storages that several searches open at once."""

import multiprocessing
from pathlib import Path
from typing import Any

import optuna
import pytest

from project.errors import InputError
from project.runs.optuna_studies import make_pruner, open_storage, silence_optuna

SEARCHES, ROUNDS = 3, 4


def search(together: Any, url: str, ends: Any) -> None:
    silence_optuna()
    try:
        together.wait(30)
        study = optuna.create_study(storage=open_storage(url), study_name="shared", load_if_exists=True)
        trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
        study.tell(trial, trial.params["x"])
        ends.put("")
    except Exception as error:
        ends.put(f"{type(error).__name__}: {error}")


@pytest.mark.slow
def test_searches_that_start_together_share_a_new_database(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for number in range(ROUNDS):
        url = f"sqlite:///{tmp_path / f'{number}.db'}"
        together, ends = context.Barrier(SEARCHES), context.Queue()
        processes = [context.Process(target=search, args=(together, url, ends)) for _ in range(SEARCHES)]
        for process in processes:
            process.start()
        assert [ends.get(timeout=60) for _ in processes] == [""] * SEARCHES
        for process in processes:
            process.join(30)
        study = optuna.load_study(study_name="shared", storage=open_storage(url))
        assert len(study.trials) == SEARCHES


@pytest.mark.parametrize(("wrapped", "pruned_at"), [("none", 4), ("median", 4), ("threshold", None)])
def test_a_patient_pruner_waits_before_it_follows_another_one(wrapped: str, pruned_at: int | None) -> None:
    silence_optuna()
    inner = {"lower": 0.0} if wrapped == "threshold" else {"n_startup_trials": 0}
    options = {"patience": 2, "wrapped": wrapped} | ({} if wrapped == "none" else {"wrapped_options": inner})
    study = optuna.create_study(pruner=make_pruner("patient", options), direction="maximize")
    study.add_trial(optuna.create_trial(value=0.9, intermediate_values=dict.fromkeys(range(10), 0.9)))
    trial, found = study.ask(), None
    for step, value in enumerate((0.1, 0.5, 0.4, 0.3, 0.2, 0.1)):
        trial.report(value, step)
        if trial.should_prune():
            found = step
            break
    assert found == pruned_at


def test_a_wrapped_pruner_is_checked() -> None:
    with pytest.raises(InputError, match=r"^hydra\.sweeper\.pruner=medain: did you mean median\?"):
        make_pruner("patient", {"patience": 2, "wrapped": "medain"})
    with pytest.raises(
        InputError, match=r"^hydra\.sweeper\.pruner_options\.patence: patient has no such option"
    ):
        make_pruner("patient", {"patence": 2})
