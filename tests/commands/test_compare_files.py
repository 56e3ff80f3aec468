"""Comparison of runs: folders, CSV files and the command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, read_table
from written_runs import write_run, write_sweep

from project.errors import InputError
from project.reporting.compare import COMPARISON, write_csv
from project.runs.comparison import compare
from project.runs.results import flatten, read_runs
from project.runtime.output_files import IMAGE, is_earlier_output


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return write_sweep(tmp_path / "sweep")


def test_runs_are_found_at_any_depth_and_once(sweep: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "cnn_digits" / "2026-01-31" / "x")
    write_run(sweep / "5" / "checkpoints" / "no_run")
    runs, _ = read_runs([tmp_path, sweep, sweep / "3"])
    assert len(runs) == 13
    assert [run.folder.name for run in runs[-3:]] == ["9", "10", "11"]
    assert [run.folder for run in read_runs([sweep / "3"])[0]] == [sweep / "3"]
    with pytest.raises(InputError, match="no such folder"):
        read_runs([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: contains no run"):
        read_runs([tmp_path / "empty"])


def test_a_configuration_is_read_as_yaml_reads_it(tmp_path: Path) -> None:
    text = (
        "model:\n  _target_: a.B\n  sizes:\n  - 1\n  - 2\nitems:\n- 1.0e-05\n- null\n# note\nname: 'x: y'\n"
    )
    for content in (text, text.replace("- 1\n", "- &one 1\n").replace("- 1.0e-05", "- *one")):
        folder = write_run(tmp_path / str(len(content)))
        (folder / "config.yaml").write_text(content)
        (run,), _ = read_runs([folder])
        own = {key: value for key, value in run.config.items() if key.partition(".")[0] != "task"}
        assert own == flatten(yaml.safe_load(content))
        first = 1 if "*one" in content else 1e-5
        assert own == {"model": "a.B", "model.sizes": [1, 2], "items": [first, None], "name": "x: y"}


def test_the_csv_of_points_holds_all(sweep: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "points.csv"
    write_run(sweep / "12", "model=cnn", "optim=adam", "seed=4", state="failed")
    assert write_csv(compare([sweep]), file) == 4
    rows = read_table(file)
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    best = rows[0]
    assert (best["n"], best["unfinished"], best["val/acc n"]) == ("3", "1", "3")
    assert best["model"] == "project.modules.networks.cnn.CNN3x3"
    assert (best["model.channels"], best["model.widths"], best["optim.lr"]) == ("[32,64]", "", "0.001")
    assert float(best["val/acc"]) == pytest.approx(0.97)
    assert float(best["val/acc std"]) == pytest.approx(0.01)
    assert best["folders"].split() == [str(sweep / name) for name in ("9", "10", "11")]


def test_the_csv_of_runs_holds_unfinished_ones_too(sweep: Path, tmp_path: Path) -> None:
    write_run(sweep / "12", "model=cnn", "seed=4", state="failed", error="it, broke")
    file = tmp_path / "runs.csv"
    assert write_csv(compare([sweep], each=True), file) == 13
    rows = read_table(file)
    assert (rows[0]["seed"], rows[0]["state"], float(rows[0]["val/loss"])) == (
        "3",
        "done",
        pytest.approx(0.02),
    )
    assert (rows[-1]["rank"], rows[-1]["error"], rows[-1]["val/acc"]) == ("", "it, broke", "")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"csv=.*cannot be written"):
        write_csv(compare([sweep]), tmp_path / "file" / "x.csv")


def compare_by_script(*arguments: str, code: int = 0, columns: int = 80) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "scripts" / "compare.py"), *arguments],
        env=os.environ | {"COLUMNS": str(columns)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "project.runs.comparison" in imported
    assert "torch" not in imported
    has_plot = any(argument.startswith("plot=") for argument in arguments)
    assert ("matplotlib" in imported) == (has_plot and code == 0)
    return done


def test_the_script_ranks_writes_and_draws(sweep: Path, tmp_path: Path) -> None:
    table, picture = tmp_path / "t.csv", tmp_path / "new" / "p.svg"
    done = compare_by_script(str(sweep), "top=2", f"csv={table}", f"plot={picture}")
    assert "not shown: 2 points" in done.stdout
    assert len(read_table(table)) == 4
    assert picture.read_text().count("<svg") == 1
    assert is_earlier_output(table, COMPARISON)
    assert is_earlier_output(picture, IMAGE)
    table.write_text("name,grade\n")
    compare_by_script(str(sweep), f"csv={table}", code=2)
    assert table.read_text() == "name,grade\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["csv=a.svg", "plot=./a.svg"], "error: plot=a.svg: the same file as csv; give another name"),
        (["by=acc"], "error: by=acc: no such metric in these runs; did you mean"),
        (["plot=x.gif"], "error: plot=x.gif: unknown format; end the name in .png, .svg, .pdf"),
        (["by=acc", "csv=/proc/x/a.csv"], "error: csv=/proc/x/a.csv: cannot be written ("),
        (["top=0"], "error: top=0: must be at least 1"),
        (["eech=true"], "error: eech=true: no key eech; did you mean each"),
        (["--plot", "x.png"], "error: --plot: no such flag; write plot=…"),
        (["--each"], "error: --each: no such flag; write each=…"),
    ],
)
def test_the_command_reports_errors_on_one_line(sweep: Path, arguments: list[str], message: str) -> None:
    done = compare_by_script(str(sweep), *arguments, code=2)
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert line.startswith(message)


def test_the_help_fits_80_columns() -> None:
    text = compare_by_script("--help").stdout
    assert max(map(len, text.splitlines())) <= 80
    for key in ("runs=outputs", "by=", "each=", "top=", "csv=", "plot=", "--traceback"):
        assert key in text
