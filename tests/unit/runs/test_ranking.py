"""The best point and the best run are the same in every table and for every command."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from written_runs import write_run

from project.inference.evaluate.options import find_networks
from project.reporting.compare import render
from project.reporting.html.sweep_page import read_sweep
from project.runs.comparison import compare, find_trained
from project.runs.ranking import Score, count_ties, find_ties, rank, score
from project.runs.sweep_jobs import Job, Ledger
from project.sweeps.job_table import best_line, results_table
from project.sweeps.live_view import LiveView

Values = dict[tuple[str, str], tuple[float | None, ...]]

LUCKY: Values = {
    ("mlp", "0.1"): (0.90, 0.80, 0.99),  # the luckiest seed
    ("mlp", "0.01"): (0.93, 0.94, 0.95),
    ("cnn", "0.1"): (0.91, 0.92, 0.93),
}


def write(folder: Path, values: Values, **status: object) -> list[Job]:
    """Write a sweep: a point per key, a seed per value from 1; None is a job that has not started."""
    jobs: list[Job] = []
    for model, lr in values:
        for seed, value in enumerate(values[model, lr], start=1):
            varied = [f"model={model}", f"optim.lr={lr}", f"seed={seed}"]
            job = Job(len(jobs), varied, varied, str(len(jobs)))
            if value is not None:
                write_run(folder / job.name, *varied, acc=value, **status)
                job.state, job.value = "done", value
            jobs.append(job)
    (folder / "sweep.json").write_text(json.dumps({"overrides": []}))
    Ledger(folder / "jobs.jsonl").write(*jobs)
    return jobs


def live_line(folder: Path, jobs: list[Job], mode: str = "max", repetitions: int = 1) -> str:
    view = LiveView(
        folder / "sweep.log", len(jobs), "val/acc", mode, lambda job: {}, repetitions, io.StringIO()
    )
    view.count_earlier(jobs)
    return view.best


def test_every_tool_names_the_same_best(tmp_path: Path) -> None:
    jobs = write(tmp_path, LUCKY)
    mean, std = np.mean([0.93, 0.94, 0.95]), np.std([0.93, 0.94, 0.95], ddof=1)
    told = f"{mean:.4f} ± {std:.4f} (n = 3)"
    best = compare([tmp_path]).points[0]
    assert (best.mean("val/acc"), best.std("val/acc")) == pytest.approx((mean, std))
    assert compare([tmp_path]).best_first[0].folder == tmp_path / "5"
    assert "best run: " + str(tmp_path / "5") in render(compare([tmp_path]), top=9, width=500)
    assert find_trained(tmp_path).path == tmp_path / "5"
    members, _ = find_networks([str(tmp_path)], ["auto"], "top3", tmp_path)
    assert [member.run.path.name for member in members] == ["5", "4", "3"]
    (run,) = [read_sweep(tmp_path).best]
    assert run is not None
    assert run.folder == tmp_path / "5"
    assert best_line(jobs, "val/acc", "max") == f"model=mlp lr=0.01: val/acc {told}, its best run 5"
    assert results_table(jobs, "val/acc", "max").splitlines()[1].split() == [
        *("best", "mlp", "0.01", f"{mean:.4f}", "±", f"{std:.4f}", "3", "done")
    ]
    assert live_line(tmp_path, jobs) == f"model=mlp lr=0.01: {told}"


def test_commands_say_which_run_stands_for_a_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, LUCKY)
    find_trained(tmp_path)
    assert capsys.readouterr().err == (
        f"run={tmp_path}: model MLP, optim.lr 0.01, the best of 3 points: val/acc 0.9400 ± 0.0100 (n = 3), "
        "its best run 5\n"
    )


def test_the_smallest_is_best_if_smaller_is_better(tmp_path: Path) -> None:
    jobs = write(tmp_path, LUCKY, mode="min")
    assert find_trained(tmp_path).path == tmp_path / "1"
    assert best_line(jobs, "val/acc", "min").startswith("model=mlp lr=0.1: val/acc 0.8967 ± 0.0950")
    assert live_line(tmp_path, jobs, "min").startswith("model=mlp lr=0.1: ")


def test_the_same_run_twice_is_one_repetition(tmp_path: Path) -> None:
    jobs = write(tmp_path / "sweep", {("mlp", "0.1"): (0.9, 0.8), ("mlp", "0.01"): (0.84, 0.83)})
    write_run(tmp_path / "alone", "model=mlp", "optim.lr=0.1", "seed=1", acc=0.9)
    best = compare([tmp_path]).points[0]
    assert len(best.runs) == 3
    assert best.score("val/acc") == Score((0.9, 0.8), planned=2)
    assert best.std("val/acc") == pytest.approx(np.std([0.9, 0.8], ddof=1))
    table = render(compare([tmp_path]), top=9, width=200)
    assert table.splitlines()[3].split()[-4] == "2"
    assert "counted once: 1 run with the seed of another one" in table
    again = Job(4, [], ["model=mlp", "optim.lr=1e-1", "seed=1"], "4", state="done", value=0.9)
    assert best_line([*jobs, again], "val/acc", "max").startswith(
        "model=mlp lr=0.1: val/acc 0.8500 ± 0.0707 (n = 2)"
    )


@pytest.mark.parametrize("repetitions", [1, 3])
def test_one_lucky_seed_of_three_does_not_win(tmp_path: Path, repetitions: int) -> None:
    values: Values = {("mlp", "0.1"): (0.99, None, None), ("mlp", "0.01"): (0.9, 0.8, 0.85)}
    jobs = write(tmp_path, values)
    assert [point.score("val/acc").count for point in compare([tmp_path]).points] == ["3", "1 of 3"]
    assert find_trained(tmp_path).path == tmp_path / "3"
    assert best_line(jobs, "val/acc", "max").startswith("model=mlp lr=0.01: ")
    shown = (
        jobs if repetitions == 1 else [job for job in jobs if job.state == "done"]
    )  # a search plans later jobs during the sweep
    assert live_line(tmp_path, shown, repetitions=repetitions).startswith("model=mlp lr=0.01: ")
    assert "1 of 3" in results_table(jobs, "val/acc", "max").splitlines()[2]
    alone = write(tmp_path / "alone", {("mlp", "0.1"): (0.99, None, None)})
    assert live_line(tmp_path, alone) == "model=mlp lr=0.1: 0.9900 (n = 1 of 3)"


def test_failed_runs_and_nan_are_never_best(tmp_path: Path) -> None:
    jobs = write(tmp_path, {("mlp", "0.1"): (0.99, np.nan), ("mlp", "0.01"): (np.inf, 0.9), **LUCKY})
    jobs = [job for job in jobs if job.number not in (3, 4)]
    write_run(tmp_path / "9", "model=cnn", "optim.lr=9", "seed=1", acc=1.0, state="failed")
    jobs.append(Job(9, [], ["model=cnn", "optim.lr=9", "seed=1"], "9", state="failed", value=1.0))
    assert find_trained(tmp_path).path.name not in ("0", "9")
    assert "lr=9" not in best_line(jobs, "val/acc", "max")


def test_order_is_mean_then_infinite_then_nan() -> None:
    scores = {
        "nan": Score((0.9, np.nan), 2),
        "inf": Score((np.inf, 0.5), 2),
        "none": Score((), 2),
        "one": Score((0.99,), 2),
        "low": Score((0.2, 0.3), 2),
        "high": Score((0.4, 0.5), 3),
    }
    ordered = rank(scores, scores.__getitem__, larger_is_better=True)
    assert ordered == ["high", "low", "one", "inf", "nan", "none"]
    assert rank(scores, scores.__getitem__, larger_is_better=False)[:3] == ["low", "high", "one"]


def test_a_score_is_what_numpy_computes() -> None:
    values = np.random.default_rng(0).normal(size=7)
    known = score([*enumerate(map(float, values)), (7, None)], planned=3)
    assert known.mean == pytest.approx(np.mean(values))
    assert known.std == pytest.approx(np.std(values, ddof=1))
    assert known.count == "7 of 8"
    assert str(Score((0.5,), 1)) == "0.5000 (n = 1)"


def test_ties_within_the_error_are_reported(tmp_path: Path) -> None:
    best = np.array([0.90, 0.92, 0.97])
    low = best.mean() - best.std(ddof=1) / np.sqrt(3)
    others = [Score((low + 1e-9,), 1), Score((low + 1e-9, low), 3), Score((low - 1e-6,), 1)]
    assert find_ties([Score(tuple(best), 3), *others], larger_is_better=True) == [1, 2]
    mirrored = [Score(tuple(-np.array(one.values)), one.planned) for one in others]
    assert count_ties([Score(tuple(-best), 3), *mirrored], larger_is_better=False) == 2
    images = 100
    bounds = {k: binomtest(k, images).proportion_ci(method="wilson") for k in range(70, 91)}
    near = [k for k in bounds if k < 90 and bounds[k].high >= bounds[90].low]
    assert 70 < near[0] < 90  # the test has both cases
    scores = [Score((k / images,), 1) for k in sorted(bounds, reverse=True)]
    tied = find_ties(scores, larger_is_better=True, images=images)
    assert [90 - place for place in tied] == near[::-1]
    assert find_ties(scores, larger_is_better=True) == []  # a metric without a known error
    assert find_ties([scores[0], scores[0], scores[1]], larger_is_better=True) == [1]  # equal
    assert find_ties([scores[0], Score((math.nan,), 1)], larger_is_better=True, images=images) == []
    write_run(tmp_path / "a", "optim.lr=1", acc=0.9)
    write_run(tmp_path / "b", "optim.lr=2", acc=0.88)
    write_run(tmp_path / "c", "optim.lr=3", acc=0.5)
    note = "1 more point ties with the best: equal, or within its error"
    assert note in render(compare([tmp_path]), top=9, width=200)
    assert note not in render(compare([tmp_path], by="val/loss"), top=9, width=200)
