"""Tests of a search's source of jobs."""

import time
from pathlib import Path

import optuna
from omegaconf import OmegaConf
from optuna.distributions import FloatDistribution

from project.runs.sweep_folder import SweepFolder
from project.sweeps.sweepers.conditions import Conditions
from project.sweeps.sweepers.optuna_search import OptunaSweeper, TrialSource


def test_time_of_a_search_counts_from_its_first_job(tmp_path: Path) -> None:
    search = OptunaSweeper(n_trials=5, timeout_s=0.05)
    search.config, search.folder = OmegaConf.create({"seed": 1, "monitor": "val/acc"}), SweepFolder(tmp_path)
    search.identity = {"owner": "here", "study": "study", "storage": None}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = {"optim.lr": FloatDistribution(0, 1)}
    source = TrialSource(search, study, [], space, Conditions({}, [], space), [])
    time.sleep(0.1)  # as while modules are imported
    assert source.next_job() is not None
    time.sleep(0.1)
    assert source.next_job() is None
    assert len(study.trials) == 1
