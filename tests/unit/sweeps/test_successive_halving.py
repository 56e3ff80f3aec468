"""Tests of asynchronous successive halving: the algorithm, and its state in the ledger."""

import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from optuna.distributions import FloatDistribution
from simulated_sweep import SimulatedSweep, loss_of

from project.errors import InputError
from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import Job
from project.sweeps.sweepers.asha_search import AshaSweeper, TrialSource, write_report
from project.sweeps.sweepers.conditions import Conditions
from project.sweeps.sweepers.pausing import values_of
from project.sweeps.sweepers.search_space import SearchSpace
from project.sweeps.sweepers.successive_halving import Trial, find_promotion, rung_epochs

FAILURE = -math.inf
RUNGS = [1, 3, 9, 27]


@pytest.mark.parametrize(
    ("min_epochs", "max_epochs", "reduction_factor", "expected"),
    [
        (1, 9, 3, [1, 3, 9]),
        (1, 10, 3, [1, 3, 10]),
        (1, 26, 3, [1, 3, 26]),
        (1, 27, 3, [1, 3, 9, 27]),
        (2, 17, 2, [2, 4, 8, 17]),
        (4, 10, 3, [10]),
    ],
)
def test_rungs_end_at_the_last_epoch(
    min_epochs: int, max_epochs: int, reduction_factor: int, expected: list[int]
) -> None:
    assert rung_epochs(min_epochs, max_epochs, reduction_factor) == expected


@pytest.mark.parametrize(
    ("trials", "promoted"),
    [
        # Rung 0 has fewer than η = 3 trials: a new trial starts.
        ([[0.5], [0.7]], None),
        # ⌊3 / 3⌋ = 1: the best of rung 0. Of equal trials, the first.
        ([[0.5], [0.7], [0.6]], 1),
        ([[0.5], [0.7], [0.7]], 1),
        # The best is at rung 1 already, or on its way there ("training"): ⌊5 / 3⌋ = 1, so nobody else.
        ([[0.5], [0.7, 0.8], [0.6], [0.1], [0.2]], None),
        ([[0.5], [0.7, "training"], [0.6], [0.1], [0.2]], None),
        # A trial that trains toward rung 0 does not count there: ⌊2 / 3⌋ = 0.
        ([[0.5], [0.7], ["training"]], None),
        # ⌊6 / 3⌋ = 2: now also the second best.
        ([[0.5], [0.7, 0.8], [0.6], [0.1], [0.2], [0.3]], 2),
        # The higher rung comes first: trial 4 is the best of rung 1, although trial 5 waits at rung 0.
        ([[0.9, 0.1], [0.8, 0.2], [0.4], [0.3], [0.7, 0.3], [0.95], *[[0.0]] * 6], 4),
        # The best of rung 1 is at the top rung 2: rung 0 is next, with ⌊12 / 3⌋ = 4.
        ([[0.9, 0.1], [0.8, 0.2], [0.4], [0.3], [0.7, 0.3, 0.4], [0.95], *[[0.0]] * 6], 5),
        # The top rung has no promotion.
        ([[0.9, 0.9, 0.9], [0.8, 0.8, 0.8], [0.7, 0.7, 0.7]], None),
        # A failure counts in the size of its rung, but is not promoted.
        ([[0.5], [FAILURE], [0.4]], 0),
        ([[FAILURE], [FAILURE], [FAILURE]], None),
        # A trial that failed at rung 1 was promoted from rung 0.
        ([[0.9, FAILURE], [0.4], [0.3]], None),
    ],
)
def test_promotion_of_a_hand_computed_table(trials: list[list[float | str]], promoted: int | None) -> None:
    """Lines 12 to 20 of Algorithm 2, with η = 3 and the rungs 0, 1 and 2."""
    states = [
        Trial([float(value) for value in values if value != "training"], "training" in values)
        for values in trials
    ]
    assert find_promotion(states, 3, 3) == promoted


def make_source(folder: SweepFolder, jobs: list[Job], **options: int) -> TrialSource:
    search = AshaSweeper(**({"n_trials": 27, "seed": 1} | options))
    search.config, search.rungs = OmegaConf.create({"monitor": "val/loss", "mode": "min"}), RUNGS
    space = {"optim.lr": FloatDistribution(0, 1)}
    return TrialSource(search, folder, SearchSpace(["model=mlp"], space, Conditions({}, [], space)), jobs)


@pytest.mark.parametrize("kill", [0.0, 0.05])
@pytest.mark.parametrize("seed", range(5))
def test_a_killed_search_neither_loses_nor_repeats_a_rung(tmp_path: Path, kill: float, seed: int) -> None:
    folder = SweepFolder(tmp_path)
    sweep = SimulatedSweep(folder, make_source, RUNGS[-1], seed, kill)
    sweep.run()
    assert (sweep.num_kills > 0) == (kill > 0)
    jobs = list(folder.ledger.read().values())
    assert len(jobs) == 27
    reached = [(job.number, epochs) for job in jobs for epochs in RUNGS[: len(values_of(job))]]
    assert sorted(sweep.trained) == sorted(reached), "each rung was trained once"
    for job in jobs:
        assert values_of(job) == [loss_of(job, epochs) for epochs in RUNGS[: len(values_of(job))]]
    for rung in range(3):  # everybody among the best third went on
        here = sorted(
            (job for job in jobs if len(values_of(job)) > rung), key=lambda job: values_of(job)[rung]
        )
        assert all(len(values_of(job)) > rung + 1 for job in here[: len(here) // 3])
    assert {job.state for job in jobs} == {"paused", "done"}
    assert len({job.settings["optim.lr"] for job in jobs}) == 27


def test_trials_depend_on_the_seed_alone(tmp_path: Path) -> None:
    drawn = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        folder = SweepFolder(tmp_path / name)
        jobs: list[Job] = []
        for _ in range(2):  # resumed after two trials
            source = make_source(folder, jobs, seed=seed)
            found = [source.next_job(), source.next_job()]
            jobs = list(folder.ledger.read().values())
            for job in jobs:
                job.state = "running"
            assert None not in found
        drawn[name] = [job.settings["optim.lr"] for job in jobs]
    assert drawn["a"] == drawn["b"]
    assert len({*drawn["a"], *drawn["c"]}) == 8


def test_ended_trials_are_promoted_without_training(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    jobs = [Job(number, [], [f"x={number}"], f"{number}", number, "paused") for number in range(3)]
    for job in jobs:
        job.pause_values = [0.5]
    jobs[1].state, jobs[1].value, jobs[1].pause_values = "done", 0.1, []  # stopped early
    jobs[2].state, jobs[2].pause_values = "failed", []
    source = make_source(folder, jobs, n_trials=3)
    assert source.next_job() is None
    assert [values_of(job) for job in jobs] == [[0.5], [0.1, 0.1], []]
    report = write_report(folder, jobs, [1, 3], "val/loss", "min")
    assert [line.split()[:4] for line in report.splitlines()[-4:-1]] == [
        *(["1", "done", "1", "0.1000"], ["0", "paused", "0", "0.5000"], ["2", "failed", "2"]),
    ]
    assert report.splitlines()[-1] == "rungs: 2 trials after 1 epoch, 1 trial after 3 epochs"
    assert (tmp_path / "trials.csv").read_text().splitlines()[1:3] == ["1,done,1,0.1,0.1", "0,paused,0,0.5,"]


@pytest.mark.parametrize(("key", "value"), [("seeds", 2), ("folds", 5)])
def test_repeated_trials_are_refused(key: str, value: int) -> None:
    with pytest.raises(InputError, match=rf"^{key}={value}: hydra/sweeper=asha trains each trial once"):
        AshaSweeper(**{key: value})
