"""Tests of population-based training: the decisions, their state in the ledger, and the tables."""

import csv
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from simulated_sweep import SimulatedSweep, loss_of

from project.errors import InputError
from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import Job
from project.sweeps.job_scheduler import reconcile_jobs
from project.sweeps.sweepers import pbt_search
from project.sweeps.sweepers.conditions import Conditions
from project.sweeps.sweepers.pausing import values_of
from project.sweeps.sweepers.pbt_report import lineage_of, write_report
from project.sweeps.sweepers.pbt_search import PbtSweeper, PopulationSource
from project.sweeps.sweepers.population import Member, explore, perturb, select_members
from project.sweeps.sweepers.search_space import SearchSpace, parse_point, random_study

FAILED = Member(-math.inf, is_paused=False)
SPACE = {"optim.lr": FloatDistribution(1e-4, 1, log=True), "data.batch_size": IntDistribution(8, 64)}
POPULATION, INTERVAL, EPOCHS = 8, 3, 12


@pytest.mark.parametrize(
    ("members", "fraction", "replaced", "sources"),
    [
        # The worst two of eight, by copies of the best two; of equal members, the earlier one is better.
        (range(8), 0.25, [0, 1], [7, 6]),
        ([0.5] * 8, 0.25, [6, 7], [0, 1]),
        # ⌊5 · 0.2⌋ = 1 and ⌊5 · 0.1⌋ = 0, but at least one.
        ([3, 1, 2, 5, 4], 0.2, [1], [3]),
        ([3, 1, 2, 5, 4], 0.1, [1], [3]),
        # All failures are replaced, even if that leaves no other bad member.
        ([3, FAILED, 2, FAILED, 4, FAILED], 0.2, [1, 3, 5], [4]),
        ([FAILED, 1], 0.5, [0], [1]),
        # Without a finite value there is nobody to copy.
        ([FAILED, FAILED], 0.5, [], []),
        ([-math.inf, -math.inf], 0.5, [], []),
        # Members that stopped early are no sources, but may be replaced.
        ([Member(9, is_paused=False), 5, 4, 1], 0.25, [3], [1]),
        ([Member(0, is_paused=False), 5, 4, 1], 0.25, [0], [1]),
    ],
)
def test_selection_of_a_hand_computed_population(
    members: list[float | Member], fraction: float, replaced: list[int], sources: list[int]
) -> None:
    states = [member if isinstance(member, Member) else Member(member) for member in members]
    assert select_members(states, fraction) == (replaced, sources)


@pytest.mark.parametrize(
    ("value", "distribution", "expected"),
    [
        (0.1, FloatDistribution(0.001, 1, log=True), {0.1 * 0.8, 0.1 * 1.2}),
        (0.9, FloatDistribution(0, 1), {0.9 * 0.8, 1.0}),
        (1.0, FloatDistribution(0, 1), {0.8}),
        (0.001, FloatDistribution(0.001, 1), {0.0012}),
        (0.0, FloatDistribution(0, 1), {None}),
        (-0.5, FloatDistribution(-1, 1), {-0.4, -0.6}),
        (2, IntDistribution(1, 9), {1, 3}),
        (40, IntDistribution(8, 64, step=8), {32, 48}),
        (0.3, FloatDistribution(0.1, 0.9, step=0.2), {0.1, 0.5}),
        ("b", CategoricalDistribution(["a", "b", "c", "d"]), {"a", "b", "c"}),
        ("a", CategoricalDistribution(["a", "b"]), {"a", "b"}),
    ],
)
def test_perturbed_values_stay_near_and_in_the_range(
    value: Any, distribution: BaseDistribution, expected: set[Any]
) -> None:
    generator = np.random.default_rng(0)
    found = {perturb(value, distribution, generator) for _ in range(60)}
    rounded = [
        {round(each, 9) if isinstance(each, float) else each for each in both} for both in (found, expected)
    ]
    assert rounded[0] == rounded[1]


def test_copies_differ_and_conditions_hold() -> None:
    space = {
        "augment": CategoricalDistribution(["none", "affine"]),
        "augment.degrees": FloatDistribution(1, 30),
        "loss.label_smoothing": CategoricalDistribution(["0.0", "0.1"]),
    }
    conditions = Conditions({"augment.degrees": "augment=affine"}, [], space)
    points = SearchSpace([], space, conditions)
    generator, values = np.random.default_rng(0), {"augment": "none", "loss.label_smoothing": "0.0"}
    for number in range(30):
        new = explore(points, values, 0.0, generator, random_study(0, number))
        assert new != values
        assert ("augment.degrees" in new) == (new["augment"] == "affine")
    changed = explore(points, values, 1.0, generator, random_study(0))
    assert changed.keys() >= {"augment", "loss.label_smoothing"}


def make_source(folder: SweepFolder, jobs: list[Job], **options: Any) -> PopulationSource:
    search = PbtSweeper(**({"population_size": POPULATION, "interval_epochs": INTERVAL} | options))
    search.config, search.max_epochs = OmegaConf.create({"monitor": "val/loss", "mode": "min"}), EPOCHS
    return PopulationSource(
        search, folder, SearchSpace(["model=mlp"], SPACE, Conditions({}, [], SPACE)), jobs
    )


def decisions(jobs: list[Job]) -> list[tuple[Any, ...]]:
    return [
        (job.name, job.overrides, job.parent, job.start_epoch, job.replaced, job.state, values_of(job))
        for job in jobs
    ]


def simulate(
    path: Path, seed: int, kill: float, monkeypatch: pytest.MonkeyPatch
) -> tuple[SimulatedSweep, list[Job]]:
    path.mkdir()
    sweep = SimulatedSweep(SweepFolder(path), make_source, EPOCHS, seed, kill)

    def killable(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            sweep.may_be_killed()
            result = function(*arguments)
            sweep.may_be_killed()
            return result

        return call

    for name in ("copy_run", "clear_result"):  # also between the files of a generation
        monkeypatch.setattr(pbt_search, name, killable(getattr(pbt_search, name)))
    sweep.run()
    monkeypatch.undo()
    return sweep, list(sweep.folder.ledger.read().values())


def test_killed_searches_decide_and_train_as_undisturbed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, undisturbed = simulate(tmp_path / "undisturbed", 0, 0.0, monkeypatch)
    assert len(undisturbed) == POPULATION + 3 * 2
    for seed in range(3):  # of the order in which jobs end, and of the kills
        sweep, jobs = simulate(tmp_path / f"{seed}", seed, 0.05 if seed else 0.0, monkeypatch)
        assert (sweep.num_kills > 0) == (seed > 0)
        assert decisions(jobs) == decisions(undisturbed)
        reached = [
            (job.number, job.start_epoch + INTERVAL * (1 + index))
            for job in jobs
            for index in range(len(values_of(job)))
        ]
        assert sorted(sweep.trained) == sorted(reached), "each generation was trained once"
        assert sum(job.state == "done" for job in jobs) == POPULATION
        for job in jobs:
            own = [epochs for number, epochs in reached if number == job.number]
            assert values_of(job) == [loss_of(job, epochs) for epochs in own]
            stages = lineage_of(jobs, job, INTERVAL)
            trainers = [f"{stage.job.number}" for stage in stages for _ in range(stage.first, stage.last + 1)]
            assert sweep.checkpoint(job).read_text().split() == trainers


def test_copies_replace_the_worst_members_and_continue_the_best(tmp_path: Path, monkeypatch: Any) -> None:
    sweep, jobs = simulate(tmp_path / "sweep", 0, 0.0, monkeypatch)
    copies = [job for job in jobs if job.parent is not None]
    for job in copies:
        assert job.parent is not None
        assert job.replaced is not None
        present = [  # members before this generation
            one
            for one in jobs
            if one.start_epoch < job.start_epoch
            and not any(copy.replaced == one.number and copy.start_epoch < job.start_epoch for copy in copies)
        ]
        ranked = sorted(present, key=lambda one: loss_of(one, job.start_epoch))
        assert len(present) == POPULATION
        assert job.parent in [one.number for one in ranked[:2]]
        assert job.replaced in [one.number for one in ranked[-2:]]
        assert jobs[job.replaced].state == "paused"
        new, old = (parse_point(one.varied, SPACE, "job") for one in (job, jobs[job.parent]))
        assert new != old
    report = write_report(sweep.folder, jobs, INTERVAL, "val/loss", "min")
    best = min((job for job in jobs if job.state == "done"), key=lambda job: job.value or 0)
    assert f"values by which {best.name} was trained:" in report
    with (sweep.folder.path / "lineage.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == POPULATION * EPOCHS // INTERVAL
    assert {row["parent"] for row in rows if int(row["job"]) < POPULATION} == {""}
    assert {int(row["first_epoch"]) for row in rows} == {1, 4, 7, 10}


def finish_generation(source: PopulationSource, folder: SweepFolder, failed: int) -> Iterator[Job]:
    """Train the waiting jobs, of which one fails."""
    while (job := source.next_job()) is not None and job.state == "waiting":
        run = folder.run(job.name)
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        job.state = "failed"
        if job.number != failed:
            job.state, job.pause_values = "paused", [1.0 + job.number]
            pbt_search.copy(Path(__file__), run.last_checkpoint)
        folder.ledger.write(job)
        yield job
        if job.number == POPULATION - 1:
            return


def test_a_replaced_failure_is_not_retried(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    source = make_source(folder, [])
    trained = list(finish_generation(source, folder, failed=2))
    assert [job.number for job in trained] == list(range(POPULATION))
    assert (job := source.next_job()) is not None
    jobs = list(folder.ledger.read().values())
    assert sorted(copy.replaced for copy in jobs[POPULATION:] if copy.replaced is not None) == [2, 7]
    reconcile_jobs(folder, jobs, retry_failed=True)
    again = make_source(folder, jobs)
    assert folder.ledger.read()[2].state == "failed"
    assert {one.number for one in again.population()} == {0, 1, 3, 4, 5, 6, 8, 9}
    waiting = [again.next_job() for _ in range(POPULATION)]
    assert {one.number for one in waiting if one} == {0, 1, 3, 4, 5, 6, 8, 9}
    assert job.state == "waiting"


def test_members_wait_if_the_decisions_cannot_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = SweepFolder(tmp_path)
    source = make_source(folder, [])
    list(finish_generation(source, folder, failed=-1))
    before = folder.ledger.file.read_bytes()

    def refuse(*jobs: Job) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder.ledger, "add", refuse)
    with pytest.raises(InputError, match=r"next generation could not be recorded \(No space left on device"):
        source.next_job()
    assert folder.ledger.file.read_bytes() == before
    monkeypatch.undo()
    jobs = list(folder.ledger.read().values())
    assert {job.state for job in jobs} == {"paused"}
    resumed = make_source(folder, jobs)
    assert resumed.next_job() is not None
    assert len(folder.ledger.read()) == POPULATION + 2


def test_members_of_a_finite_space_differ(tmp_path: Path) -> None:
    source = make_source(SweepFolder(tmp_path), [], population_size=3)
    space = {"optim.lr": CategoricalDistribution(["0.1", "0.2", "0.3"])}
    source.space = SearchSpace([], space, Conditions({}, [], space))
    found = [source.next_job() for _ in range(3)]
    assert {job.settings["optim.lr"] for job in found if job} == {"0.1", "0.2", "0.3"}


def test_jobs_with_equal_values_and_other_ancestors_are_other_points() -> None:
    first, second = (Job(number, [], ["optim.lr=0.1"], f"{number}") for number in range(2))
    assert first.point_key == second.point_key
    second.parent = 0
    assert first.point_key != second.point_key


@pytest.mark.parametrize(("key", "value"), [("seeds", 2), ("folds", 5)])
def test_repeated_members_are_refused(key: str, value: int) -> None:
    with pytest.raises(InputError, match=rf"^{key}={value}: hydra/sweeper=pbt trains each trial once"):
        PbtSweeper(**{key: value})
