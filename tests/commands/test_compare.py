"""Comparison of runs: ranking, keys that differ, and learning curves."""

import json
import math
import statistics
from pathlib import Path

import pytest
from written_runs import write_curve, write_run, write_sweep

from project.errors import InputError
from project.reporting.compare import render
from project.reporting.compare_plot import read_curves
from project.runs.comparison import Comparison, compare
from project.runs.hparam_diff import Differences, short_names
from project.runs.results import DURATION, read_runs
from project.runtime.text import duration, shorten


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return write_sweep(tmp_path / "sweep")


def point_values(comparison: Comparison) -> list[list[str]]:
    """Return the values of the keys that differ for each point, best first."""
    first = [point.runs[0] for point in comparison.points]
    return [comparison.shown.texts(first, key) for key in comparison.shown.leading]


def test_seeds_are_one_point_with_mean_and_sample_deviation(sweep: Path) -> None:
    comparison = compare([sweep])
    assert comparison.shown.leading == ["model", "optim"]
    assert point_values(comparison) == [["CNN3x3", "CNN3x3", "MLP", "MLP"], ["Adam", "SGD", "Adam", "SGD"]]
    assert [len(point.runs) for point in comparison.points] == [3, 3, 3, 3]
    best = comparison.points[0]
    assert best.mean("val/acc") == pytest.approx(0.97)
    assert best.std("val/acc") == pytest.approx(statistics.stdev([0.96, 0.97, 0.98]))
    assert best.std("val/acc") == pytest.approx(0.01)
    assert best.mean(DURATION) == 10


def test_each_run_can_be_ranked_by_itself(sweep: Path) -> None:
    comparison = compare([sweep], each=True)
    assert [point.mean("val/acc") for point in comparison.points[:2]] == pytest.approx([0.98, 0.97])
    assert [point.runs[0].folder.name for point in comparison.points[:2]] == ["11", "10"]
    assert math.isnan(comparison.points[0].std("val/acc"))
    table = render(comparison, top=3, width=100)
    assert table.splitlines()[2].split() == (
        ["#", "model", "optim", "seed", "val/acc", "test/acc", "val/loss", "time", "run"]
    )
    assert table.splitlines()[3].split() == (
        ["1", "CNN3x3", "Adam", "3", "0.9800", "0.9700", "0.0200", "10", "s", "11"]
    )
    assert "not shown: 9 points; top=12 shows all" in table
    assert f"best run: {sweep}/11" in table


def test_a_table_in_80_columns(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sweep.parent)  # a long path would have a line of its own
    lines = render(compare([sweep.name]), top=20, width=80).splitlines()
    assert lines[0] == "12 runs in 4 points: mean ± sample std over n seeds; largest val/acc first"
    assert lines[2].split() == ["#", "model", "optim", "val/acc", "test/acc", "n", "time", "best", "run"]
    assert " ".join(lines[3].split()) == "1 CNN3x3 Adam 0.9700 ± 0.0100 0.9600 ± 0.0100 3 10 s 11"
    assert max(map(len, lines[:7])) <= 80
    assert lines[8].endswith("sweep/11")  # the best run of the best point


def test_runs_on_different_data_are_ranked_apart(tmp_path: Path) -> None:
    for number, (data, lr, acc) in enumerate(
        [("Digits", 0.1, 0.8), ("Digits", 0.01, math.nan), ("Synthetic", 0.1, 0.99), ("Synthetic", 0.01, 0.9)]
    ):
        write_run(tmp_path / f"run{number}", f'data._target_="our.{data}"', f"optim.lr={lr}", acc=acc)
    lines = render(compare([tmp_path]), top=20, width=80).splitlines()
    assert lines[0] == "4 runs on 2 data sets; largest val/acc first in each"
    tables = [line for line in lines[2:] if line.startswith(("data=", "1", " ", "2"))]
    assert [line.split()[:2] for line in tables] == [
        ["data=Synthetic"], ["1", "0.1"], ["2", "0.01"], ["data=Digits"], ["1", "0.1"], ["0.01", "nan"],
    ]  # fmt: skip
    assert [line.split()[-1] for line in tables if "=" not in line] == ["run2", "run3", "run0", "run1"]
    text = " ".join(lines)
    assert f"best run of data=Synthetic: {tmp_path}/run2 best run of data=Digits: {tmp_path}/run0" in text


@pytest.mark.parametrize(("key", "values"), [("table", ["a.csv", "b.csv"]), ("label_columns", ["x", "y"])])
def test_runs_on_different_tables_are_ranked_apart(tmp_path: Path, key: str, values: list[str]) -> None:
    for number, value in enumerate([*values, values[0]]):
        write_run(tmp_path / f"run{number}", f'data.{key}="{value}"', f"optim.lr={number}", acc=0.5)
    lines = render(compare([tmp_path]), top=20, width=80).splitlines()
    assert lines[0].startswith("3 runs on 2 data sets;")
    assert {line for line in lines if line.startswith("data=")} == {f"data={value}" for value in values}


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_columns_that_do_not_fit_are_hidden_and_listed(tmp_path: Path, width: int) -> None:
    for number, lr in enumerate((0.1, 0.01, 0.001)):
        overrides = (f"optim.lr={lr}", f"optim.momentum={json.dumps([number] * 30)}")
        write_run(tmp_path / str(number), *overrides, acc=lr)
    comparison = compare([tmp_path])
    lines = render(comparison, top=20, width=width).splitlines()
    heading = lines[2].split()
    assert max(map(len, lines[:6])) <= width
    assert heading[0] == "#"
    assert {"lr", "val/acc"} <= set(heading)
    left_out = {"lr", "momentum", "val/acc", "test/acc", "val/loss", "time"} - set(heading)
    note = " ".join(lines[7:])
    assert all(name in note for name in left_out)
    assert ("without room" in note) == bool(left_out)
    assert bool(left_out) == (width < 80)


def test_only_keys_that_differ_are_shown(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "model=mlp", "optim.lr=0.01")
    write_run(tmp_path / "b", "model=mlp", "optim.lr=0.1")
    write_run(tmp_path / "c", "model=cnn", "optim.lr=0.1", "seed=2")
    differences = Differences(read_runs([tmp_path])[0])
    assert differences.leading == ["model", "optim.lr"]
    assert differences.following == ["model.widths", "model.channels"]
    assert differences.repetitions == ["seed"]  # data.seed is a copy; paths, name and dirpath are not choices


def test_a_key_that_was_set_is_shown_though_it_could_follow(tmp_path: Path) -> None:
    for name, lr in (("sgd", "0.1"), ("adam", "0.002")):
        write_run(tmp_path / "set" / name, f"optim={name}", f"optim.lr={lr}")
        write_run(tmp_path / "not" / name, f"optim={name}")
    assert Differences(read_runs([tmp_path / "set"])[0]).leading == ["optim", "optim.lr"]
    assert Differences(read_runs([tmp_path / "not"])[0]).leading == ["optim"]
    # Between the two sweeps lr differs for one optimizer: then it tells.
    assert Differences(read_runs([tmp_path])[0]).leading == ["optim", "optim.lr"]


def test_no_difference_is_lost_without_overrides(tmp_path: Path) -> None:
    for number in range(3):
        write_run(tmp_path / str(number), f"optim.lr={10.0**-number}")
        (tmp_path / str(number) / ".hydra" / "overrides.yaml").unlink()
    differences = Differences(read_runs([tmp_path])[0])
    assert differences.leading == ["optim.lr"]
    assert len(compare([tmp_path]).points) == 3


def test_options_that_change_no_class_are_shown_by_their_name(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "augment=crop_flip", acc=0.9)
    write_run(tmp_path / "b", "augment=none", acc=0.8)
    write_run(tmp_path / "c", "seed=2", acc=0.6)  # the same as b, unsaid
    comparison = compare([tmp_path])
    assert comparison.shown.leading == ["augment"]
    assert comparison.shown.following == ["augment.flip_prob", "augment.random_crop_padding"]
    assert point_values(comparison) == [["crop_flip", "none"]]
    assert comparison.points[1].mean("val/acc") == pytest.approx(0.7)


def test_presets_tell_what_they_set(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "experiment=small", acc=0.7)
    write_run(tmp_path / "b", "experiment=large", acc=0.8)
    config = (tmp_path / "b" / "config.yaml").read_text()
    (tmp_path / "b" / "config.yaml").write_text(config.replace("- 128", "- 512").replace("0.01", "0.03"))
    comparison = compare([tmp_path])
    assert comparison.shown.leading == ["experiment"]
    assert comparison.shown.following == ["model.widths", "optim.lr"]
    assert point_values(comparison) == [["large", "small"]]


def test_folds_are_repetitions_too(tmp_path: Path) -> None:
    for fold in range(3):
        write_run(tmp_path / str(fold), f"data.fold={fold}", "model=cnn", acc=0.5 + 0.1 * fold)
    (point,) = compare([tmp_path]).points
    assert (point.mean("val/acc"), point.std("val/acc")) == pytest.approx((0.6, 0.1))


def test_equal_numbers_are_one_value(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "optim.momentum=1", "seed=1")
    write_run(tmp_path / "b", "optim.momentum=1.0", "seed=2")
    write_run(tmp_path / "c", "optim.momentum=true", "seed=1")
    assert [len(point.runs) for point in compare([tmp_path]).points] == [2, 1]


def test_unfinished_runs_are_named_and_never_averaged(sweep: Path) -> None:
    failed = write_run(
        sweep / "12", "model=cnn", "optim=adam", "seed=4", acc=0.0, state="failed", error="RuntimeError: lost"
    )
    write_run(sweep / "13", "model=cnn", "optim=adam", "seed=5", acc=1.0, state="running")
    comparison = compare([sweep])
    assert comparison.points[0].mean("val/acc") == pytest.approx(0.97)
    assert comparison.points[0].unfinished == 2
    table = render(comparison, top=20, width=200)
    assert "not ranked: 1 failed, 1 running" in table
    assert f"  failed  {failed}  RuntimeError: lost" in table


def test_damaged_runs_are_skipped_and_listed(sweep: Path) -> None:
    (sweep / "0" / "status.json").write_text('{"state": "do')
    (sweep / "1" / "config.yaml").write_text("model: [1,\nseed: 2\n")
    (sweep / "2" / "config.yaml").write_text("")
    (sweep / "3" / "status.json").write_text("[]")
    comparison = compare([sweep])
    assert comparison.count == 8
    assert len(comparison.damaged) == 4
    table = render(comparison, top=20, width=300)
    assert "skipped: 4 damaged runs" in table
    for name in ("0/status.json", "1/config.yaml", "2/config.yaml", "3/status.json"):
        assert sum(str(sweep / name) in line for line in table.splitlines()) == 1


@pytest.mark.parametrize(("mode", "order"), [("max", "acd b"), ("min", "dca b")])
def test_values_that_are_none_rank_last(tmp_path: Path, mode: str, order: str) -> None:
    values = {"a": 0.9, "b": math.nan, "c": 0.2, "d": 0.1}
    for lr, (name, value) in enumerate(values.items(), start=1):
        write_run(tmp_path / name, f"optim.lr={lr}", acc=value, mode=mode)
    comparison = compare([tmp_path])
    assert [point.runs[0].folder.name for point in comparison.points] == list(order.replace(" ", ""))
    assert "nan" in render(comparison, top=20, width=100)


def test_one_seed_that_diverged_is_not_averaged_away(tmp_path: Path) -> None:
    for seed, value in enumerate((0.9, math.nan, 0.8)):
        write_run(tmp_path / str(seed), f"seed={seed}", acc=value)
    (point,) = compare([tmp_path]).points
    assert math.isnan(point.mean("val/acc"))
    assert math.isnan(point.std("val/acc"))


def test_a_value_that_was_not_measured_is_none(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "seed=1", value=None, metrics={"test/acc": 0.5})
    assert math.isnan(compare([tmp_path]).points[0].mean("val/acc"))


def test_any_metric_ranks_and_losses_ascend(sweep: Path) -> None:
    comparison = compare([sweep], by="val/loss")
    assert not comparison.larger_is_better
    assert comparison.points[0].mean("val/loss") == pytest.approx(0.03)
    assert compare([sweep], by="test/acc").larger_is_better
    assert not compare([sweep], by=DURATION).larger_is_better
    with pytest.raises(InputError, match=r"by=tst/acc: no such metric .*did you mean test/acc"):
        compare([sweep], by="tst/acc")


def test_runs_with_different_monitors_need_the_option_by(tmp_path: Path) -> None:
    write_run(tmp_path / "a", acc=0.9)
    write_run(tmp_path / "b", acc=0.8, monitor="val/loss", mode="min")
    with pytest.raises(InputError, match=r"different metrics .*by=val/acc or by=val/loss"):
        compare([tmp_path])
    assert compare([tmp_path], by="val/acc").points[0].mean("val/acc") == pytest.approx(0.85)


def test_a_folder_without_finished_runs_is_rejected(tmp_path: Path) -> None:
    write_run(tmp_path / "a", state="failed")
    with pytest.raises(InputError, match=r"no finished run \(1 failed\)"):
        compare([tmp_path])


def test_curves_are_means_over_seeds(tmp_path: Path) -> None:
    for seed, accuracies in enumerate(((0.5, 0.7, 0.8), (0.6, 0.9), (0.7, 0.8))):
        write_curve(write_run(tmp_path / str(seed), f"seed={seed}"), *accuracies)
    metric, axis, (curve,) = read_curves(compare([tmp_path], by="test/acc"))
    assert (metric, axis) == ("val/acc", "epoch")
    assert curve.x == [1, 2]  # the third epoch is that of one run in three
    assert curve.mean == pytest.approx([0.6, 0.8])
    assert curve.std == pytest.approx([0.1, 0.1])


def test_a_curve_ends_where_a_seed_diverged(tmp_path: Path) -> None:
    for seed, accuracies in enumerate(((0.5, 0.7, 0.8), (0.6, math.nan, 0.9))):
        write_curve(write_run(tmp_path / str(seed), f"seed={seed}"), *accuracies)
    _, _, (curve,) = read_curves(compare([tmp_path]))
    assert (curve.x, curve.mean) == ([1], pytest.approx([0.55]))


def test_several_validations_per_epoch_are_distinguished_by_steps(tmp_path: Path) -> None:
    write_curve(write_run(tmp_path / "a"), 0.1, 0.2, 0.3, 0.4, per_epoch=2)
    _, axis, (curve,) = read_curves(compare([tmp_path]))
    assert (axis, curve.x, curve.mean) == ("step", [10, 20, 30, 40], [0.1, 0.2, 0.3, 0.4])


def test_damaged_metric_files_have_no_curves(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "optim.lr=1")
    write_curve(write_run(tmp_path / "b", "optim.lr=2", acc=0.4), 0.1, 0.2)
    (tmp_path / "a" / "metrics.csv").write_bytes(b"\xff\xfe\x00")
    _, _, (none, curve) = read_curves(compare([tmp_path]))
    assert (none.x, curve.x) == ([], [1, 2])


def test_names_are_short_where_that_is_enough() -> None:
    keys = ["model", "optim.lr", "model.dropout", "head.dropout", "data.n"]
    assert list(short_names(keys, ["n"]).values()) == [
        "model", "lr", "model.dropout", "head.dropout", "data.n"
    ]  # fmt: skip


def test_texts_are_short() -> None:
    assert [duration(seconds) for seconds in (0.94, 61, 150, 9000, math.nan)] == [
        "0.9 s", "1 min 1 s", "2 min 30 s", "2 h 30 min", ""
    ]  # fmt: skip
    assert shorten("abcdefghij", 7) == "abc…hij"[:7]
    assert shorten("abcdefghij", 6, keep="start") == "abcde…"
