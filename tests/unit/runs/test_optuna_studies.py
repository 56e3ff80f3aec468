"""Optuna storages that several searches open at once."""

import multiprocessing
from pathlib import Path
from typing import Any

import optuna
import pytest

from project.runs.optuna_studies import open_storage, silence_optuna

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
