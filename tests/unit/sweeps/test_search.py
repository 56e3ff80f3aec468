"""Tests of a search's source of jobs."""

import time
from collections import deque
from pathlib import Path

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import Job
from project.sweeps.sweepers.conditions import Conditions
from project.sweeps.sweepers.optuna_search import OptunaSweeper
from project.sweeps.sweepers.optuna_trials import TrialSource
from project.sweeps.sweepers.search_space import SearchSpace


def test_time_of_a_search_counts_from_its_first_job(tmp_path: Path) -> None:
    search = OptunaSweeper(n_trials=5, timeout_s=0.05)
    search.config, search.folder = OmegaConf.create({"seed": 1, "monitor": "val/acc"}), SweepFolder(tmp_path)
    search.identity = {"owner": "here", "study": "study", "storage": None}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = {"optim.lr": FloatDistribution(0, 1)}
    source = TrialSource(search, study, SearchSpace([], space, Conditions({}, [], space)), [])
    time.sleep(0.1)  # as while modules are imported
    assert source.next_job() is not None
    time.sleep(0.1)
    assert source.next_job() is None
    assert len(study.trials) == 1


@pytest.mark.parametrize("in_flight", [1, 3])
def test_each_point_of_a_finite_space_is_trained_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], in_flight: int
) -> None:
    search = OptunaSweeper(n_trials=20)
    search.config, search.folder = OmegaConf.create({"seed": 1, "monitor": "val/acc"}), SweepFolder(tmp_path)
    search.identity = {"owner": "here", "study": "study", "storage": None}
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=1))
    space = {"optim.lr": CategoricalDistribution(["0.1", "0.2"]), "+model.depth": IntDistribution(1, 3)}
    conditions = Conditions({"model.depth": "optim.lr=0.2"}, [], space)
    source = TrialSource(search, study, SearchSpace([], space, conditions), [])
    assert source.points is not None
    search.limit_trials(source)
    assert capsys.readouterr().out == "the space has 4 points: the search ends when all are tried\n"
    running, trained = deque[Job](), []
    while True:
        while len(running) < in_flight and (job := source.next_job()) is not None:
            running.append(job)
            trained.append(job)
        if not running:
            break
        ended = running.popleft()
        ended.state, ended.value = "done", float(len(ended.varied))
        source.finish(ended)
    assert {tuple(job.varied) for job in trained} == {
        ("optim.lr=0.1",),
        *(("optim.lr=0.2", f"+model.depth={depth}") for depth in (1, 2, 3)),
    }
    assert len(trained) == 4
    assert len(study.trials) > 4  # the sampler repeated points
    assert all(trial.value == float(len(trial.params)) for trial in study.trials)


def test_points_of_a_space_without_end_are_unknown() -> None:
    for distribution in (FloatDistribution(0, 1), IntDistribution(0, 10**9)):
        space = {"optim.lr": distribution, "model": CategoricalDistribution(["mlp", "cnn"])}
        assert SearchSpace([], space, Conditions({}, [], space)).find_points() is None
