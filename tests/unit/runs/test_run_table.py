"""List of runs: conditions, order, notes, live and dead runs, export."""

import csv
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from written_runs import write_curve, write_run, write_sweep

from project.config.command_options import read_options
from project.errors import InputError
from project.reporting.runs.command import Options, main, render, write_csv, write_json
from project.reporting.runs.curves import MAX_POINTS, CurveReader
from project.reporting.runs.live import LiveRuns, time_left_s
from project.reporting.runs.logs import read_log
from project.reporting.runs.notes import Notes, read_notes, write_notes
from project.reporting.runs.run_index import DEAD, Record, RunIndex, read_records
from project.reporting.runs.run_table import RunTable
from project.runs.folders import folder_lock, is_locked
from project.runs.sweep_jobs import Job


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return write_sweep(tmp_path / "sweep")


def names(folder: Path, *conditions: str) -> list[str]:
    return [record.name for record in RunTable(read_records([folder])).select(conditions)]


def write_running(folder: Path, **status: object) -> Path:
    started = datetime.now(UTC).isoformat()
    facts = {"state": "running", "pid": os.getpid(), "host": platform.node(), "started": started}
    return write_run(folder, "model=cnn", **facts | status)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["model=cnn", "val/acc>0.965"], [10, 11]),
        (["model=CNN3x3", "optim=adam", "seed=1"], [9]),
        (["model=project.modules.networks.cnn.CNN3x3", "seed!=1,2"], [8, 11]),
        (["model=c*", "seed<=1.0"], [6, 9]),
        (["optim.lr=1e-3", "model~lp"], [3, 4, 5]),
        (["lr>=0.01", "state=done", "seed=2"], [1, 7]),
        (["test/acc>=0.97"], [11]),
        (["acc>0.97", "started>2026-01-30"], "ambiguous"),
        (["started>2026-01-30", "seed=3", "model=mlp", "optim=sgd"], [2]),
        (["started>2026-02-01"], []),
        (["name=1,11"], [1, 11]),
        (["folder~sweep/10"], [10]),
    ],
)
def test_conditions(sweep: Path, conditions: list[str], expected: list[int] | str) -> None:
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            names(sweep, *conditions)
    else:
        assert names(sweep, *conditions) == list(map(str, expected))


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("lrr>0.1", r"lrr>0.1: no column lrr; did you mean lr\?"),
        ("val/ac>0.1", r"val/ac>0.1: no column val/ac; did you mean val/acc"),
        ("val/acc>high", r"expected a number, got 'high'"),
        ("state>0.5", r"state>0.5: state is text"),
        ("lr=", r"lr=: no value \(expected lr=VALUE\)"),
    ],
)
def test_wrong_conditions_are_one_line(sweep: Path, condition: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        names(sweep, condition)
    assert "\n" not in str(error.value)


def test_lists_and_missing_values_are_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "model.widths=[128,64]")
    write_run(tmp_path / "b", "model.widths=[64]", "data.limit=null")
    assert names(tmp_path, "widths=[128,64]") == ["a"]
    assert names(tmp_path, "data.limit=null") == ["a", "b"]
    assert names(tmp_path, "widths!=[128,64]") == ["b"]


def test_order_of_rows(sweep: Path) -> None:
    write_run(sweep / "12", "model=cnn", state="failed")
    table = RunTable(read_records([sweep]))
    best = [record.name for record in table.sorted(table.records, "-val/acc")]
    assert best == ["11", "10", "9", "8", "7", "6", "5", "4", "3", "2", "1", "0", "12"]
    assert [record.name for record in table.sorted(table.records, "val/acc")] == [*best[-2::-1], "12"]
    with pytest.raises(InputError, match="sort=vall: no column vall"):
        table.sorted(table.records, "vall")


def test_values_equal_status_json(sweep: Path) -> None:
    table = RunTable(read_records([sweep]))
    for record in table.records:
        status = json.loads((Path(record.key) / "status.json").read_text())
        assert dict(record.metrics) == status["metrics"]
        assert record.duration_s == status["duration_s"]


def test_dead_runs_are_told_from_running_ones(tmp_path: Path) -> None:
    progress = {"epoch": 3, "epochs": 10, "val/acc": 0.7}
    write_running(tmp_path / "running", progress=progress)
    write_running(tmp_path / "dead", pid=2**22 + 1)
    write_running(tmp_path / "reused", started="2020-01-01T00:00:00+00:00")
    old = write_running(tmp_path / "elsewhere", host="other machine")
    assert names(tmp_path, f"state={DEAD}") == ["dead", "reused"]
    assert names(tmp_path, "state=running") == ["elsewhere", "running"]
    os.utime(old / "status.json", (0, 0))
    assert names(tmp_path, f"state={DEAD}") == ["dead", "elsewhere", "reused"]
    assert names(tmp_path, "val/acc>0.6", "epoch=3") == ["running"]
    assert "dead: the process has ended" in render(
        RunTable(read_records([tmp_path])), read_records([tmp_path]), 50
    )


def test_a_lock_is_seen_without_taking_it(tmp_path: Path) -> None:
    assert is_locked(tmp_path) is False
    with folder_lock(tmp_path):
        assert is_locked(tmp_path) in (True, None)
    assert not is_locked(tmp_path)


def test_notes_are_kept_in_the_folder(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(
        read_options(Options, [str(sweep), "model=cnn", "seed=1", "add_tags=paper,best", "set_note=<b>ü</b>"])
    )
    assert "notes of 2 runs written" in capsys.readouterr().out
    assert json.loads((sweep / "6" / "notes.json").read_text()) == {
        "tags": ["paper", "best"],
        "note": "<b>ü</b>",
    }
    main(read_options(Options, [str(sweep), "tags=paper", "optim=sgd", "remove_tags=paper"]))
    assert names(sweep, "tags=paper") == ["9"]
    assert names(sweep, "tags=best", "note~ü") == ["6", "9"]
    assert not list(sweep.rglob("*partial*"))
    with pytest.raises(InputError, match="not a tag"):
        Notes().changed(add=["two words"])
    (sweep / "1" / "notes.json").write_text('{"tags": 3, "note": ["x"]}')
    assert read_notes(sweep / "1") == Notes()
    (sweep / "2" / "notes.json").mkdir()
    with pytest.raises(InputError, match=r"notes\.json: cannot be written"):
        write_notes(sweep / "2", Notes(("x",)))


def test_nothing_is_written_without_notes(sweep: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in sweep.rglob("*")}
    main(read_options(Options, [str(sweep)]))
    LiveRuns([sweep]).state(0, "lr>0")
    assert {file: file.stat().st_mtime_ns for file in sweep.rglob("*")} == before


def test_exports_hold_all_columns(sweep: Path, tmp_path: Path) -> None:
    write_run(
        sweep / "12",
        "model=cnn",
        state="failed",
        error="=1+1",
        progress={"epoch": 1, "val/acc": float("nan")},
    )
    table = RunTable(read_records([sweep]))
    write_csv(table, table.records, tmp_path / "runs.csv")
    write_json(table, table.records, tmp_path / "runs.json")
    with (tmp_path / "runs.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    content = json.loads((tmp_path / "runs.json").read_text())
    assert len(rows) == len(content) == 13
    assert rows[12]["error"] == "'=1+1"
    assert content[12]["val/acc"] == "nan"
    for row, one, record in zip(rows, content, table.records, strict=True):
        assert row["folder"] == one["folder"] == record.key
        if record.state == "done":
            assert float(row["val/acc"]) == one["val/acc"] == record.metrics["val/acc"]


def test_options_and_conditions_are_told_apart() -> None:
    options = read_options(Options, ["a", "runs=b", "lr=0.1", "val/acc>=0.5", "x!=y", "top=3", "sort=-lr"])
    assert options.runs == ["a", "b"]
    assert list(options.where) == ["lr=0.1", "val/acc>=0.5", "x!=y"]
    assert (options.top, options.sort) == (3, "-lr")
    with pytest.raises(InputError, match="top=x: expected a whole number"):
        read_options(Options, ["top=x"])


def test_only_changed_rows_are_sent(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    running = write_running(sweep / "12", progress={"epoch": 1, "epochs": 4, "val/acc": 0.1})
    live = LiveRuns([sweep], refresh_s=0.0)
    first = live.state(0, "")
    assert len(first["rows"]) == 13
    assert first["summary"]["is_active"]
    assert first["summary"]["end"] == ""
    assert "rows" not in live.state(first["version"], "")
    ranking = live.table.comparison
    progress = {"epoch": 2, "epochs": 4, "val/acc": 0.2}
    status = json.loads((running / "status.json").read_text()) | {"progress": progress}
    (running / "status.json").write_text(json.dumps(status))
    (row,) = live.state(first["version"], "")["rows"]
    assert (row["epoch"], row["cells"]["val/acc"]) == (2, 0.2)
    assert live.table.comparison is ranking  # no run has finished
    status = json.loads((running / "status.json").read_text())
    status |= {"state": "done", "metrics": {"val/acc": 0.99}, "duration_s": 5.0}
    (running / "status.json").write_text(json.dumps(status))
    second = live.state(first["version"], "val/acc>0.985")
    assert [row["name"] for row in second["rows"]] == ["12"]
    names = [column["name"] for column in second["columns"]]
    assert names == list(dict.fromkeys(names))
    assert names[:4] == ["name", "state", "epoch", "model"]
    assert second["rows"][0]["cells"]["val/acc"] == 0.99
    assert second["match"] == [second["rows"][0]["id"]]
    assert second["summary"]["states"] == {"done": 13}
    assert not second["summary"]["is_active"]
    assert live.state(0, "lrr=1")["filter_error"].endswith("did you mean lr?")
    assert live.state(0, "'")["filter_error"] == "filter: a quote is not closed"


def test_jobs_of_a_sweep_without_a_folder_are_waiting(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    (sweep / "sweep.json").write_text(json.dumps({"host": platform.node(), "overrides": []}))
    jobs = [
        Job(12, [], ["model=cnn", "optim=rmsprop", "optim.lr=0.5"], "12_cnn"),
        Job(13, [], ["model=mlp"], "13_mlp", state="failed", error="RuntimeError: no memory"),
    ]
    index = RunIndex([sweep])
    assert index.sweep is not None
    index.sweep.ledger.write(*jobs)
    live = LiveRuns([sweep])
    rows = {row["name"]: row for row in live.state(0, "")["rows"]}
    assert rows["12_cnn"]["state"] == "waiting"
    assert rows["12_cnn"]["cells"] == {"model": "CNN3x3", "optim": "rmsprop", "optim.lr": 0.5}
    assert names(sweep, "model=cnn", "state=waiting") == ["12_cnn"]
    assert rows["13_mlp"]["error"] == "RuntimeError: no memory"
    summary = live.state(0, "")["summary"]
    assert summary["states"] == {"done": 12, "waiting": 1, "failed": 1}
    assert summary["end"].startswith("The sweep has stopped with 1 unfinished job; continue it with")


def test_time_left() -> None:
    def record(state: str, **more: float) -> Record:
        return Record(state, state, None, state, {}, **more)  # type: ignore[arg-type]

    done = [record("done", duration_s=100.0), record("done", duration_s=200.0)]
    running = [record("running", epoch=2.0, epochs=8.0, duration_s=30.0), record("running", duration_s=1.0)]
    waiting = [record("waiting")] * 4
    mean = np.mean([100, 200, 120])
    assert time_left_s([*done, *running, *waiting]) == pytest.approx((90 + mean + 4 * mean) / 2)
    assert time_left_s([*done, running[0]]) == pytest.approx(90)
    assert time_left_s(done) is None
    assert time_left_s([running[1]]) is None


def test_curves_are_read_as_they_grow(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_curve(run, 0.5, 0.6)
    reader = CurveReader()
    found = reader.read([str(run)], ["val/acc"], 0)
    assert found["curves"] == [{"run": str(run), "metric": "val/acc", "x": [10.0, 20.0], "y": [0.5, 0.6]}]
    assert found["names"] == ["train/loss", "val/acc"]
    assert reader.read([str(run)], ["val/acc"], found["version"])["curves"] == []
    with (run / "metrics.csv").open("a") as stream:
        stream.write("30,,2,0.7,\n40,,3,nan,\n50,,4,0.")
    grown = reader.read([str(run)], ["val/acc"], found["version"])["curves"]
    assert grown[0]["y"] == [0.5, 0.6, 0.7, None]
    write_curve(run, 0.1)  # a new file, as after a resume from an earlier step
    assert reader.read([str(run)], ["val/acc"], 0)["curves"][0]["y"] == [0.1]


def test_long_curves_are_averaged(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(4 * MAX_POINTS)
    lines = [f"{step},{value}" for step, value in enumerate(values)]
    (tmp_path / "metrics.csv").write_text("\n".join(["step,loss", *lines]) + "\n")
    (curve,) = CurveReader().read([str(tmp_path)], ["loss"], 0)["curves"]
    assert len(curve["y"]) == MAX_POINTS
    assert np.allclose(curve["y"], values.reshape(-1, 4).mean(axis=1))


def test_a_log_is_followed(tmp_path: Path) -> None:
    assert read_log(tmp_path, -1) == {"text": "", "next": 0, "is_new": True}
    log = tmp_path / "train.log"
    log.write_text("one\ntwo\nhal")
    first = read_log(tmp_path, -1)
    assert first == {"text": "one\ntwo\n", "next": 8, "is_new": True}
    log.write_text("one\ntwo\nhalf\n")
    assert read_log(tmp_path, 8) == {"text": "half\n", "next": 13, "is_new": False}
    log.write_text("x" * 100_000 + "\nlast\n")
    assert read_log(tmp_path, -1)["text"] == "last\n"
    log.write_text("new\n")
    assert read_log(tmp_path, 13)["is_new"]


def test_a_narrow_table_keeps_results_and_searched_keys(tmp_path: Path) -> None:
    for number in range(2):
        write_run(tmp_path / f"run{number}", f"optim.lr=0.{number + 1}")
    rows = RunTable(read_records([str(tmp_path)]))
    lines = render(rows, rows.records, top=9, width=60).splitlines()
    assert {"lr", rows.monitor} <= set(lines[2].split())
    assert max(map(len, lines)) <= 60
