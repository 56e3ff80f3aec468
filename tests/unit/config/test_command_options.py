"""The keys of the commands after training, and the runs that they name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from written_runs import write_run, write_sweep

from project.config.command_options import Overrides, describe, option, read_options
from project.errors import InputError
from project.runs.comparison import find_trained


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Do something.

    At length.
    """

    run: str = option(help="a run")
    split: Literal["val", "test"] = option("test", "which images")
    folder: Path | None = option(None, "where to")
    count: int | None = option(3, "how many", least=1, most=1_000_000)
    share: float = option(0.5, "how much", least=0)
    fast: bool = option(False, "hurry")
    names: list[str] = option(["a", "b"], "of things")
    views: Literal["none", "flip"] | None = option(None, "copies")
    data: Overrides = option(Overrides(), "another data set")


def test_words_become_values_of_the_keys_types(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_options(Keys, ["last"]) == Keys(run="last")
    assert Keys(run="x").names == ["a", "b"]
    monkeypatch.setenv("HOME", "/home/ann")
    words = "run=a=b split=val folder=~/out count=null share=1e-3 fast=True names=c,d names=e views=flip"
    assert read_options(Keys, [*words.split(), "data=mnist", "data.path=x", "names='f,g'"]) == Keys(
        run="a=b",
        split="val",
        folder=Path("/home/ann/out"),
        count=None,
        share=0.001,
        fast=True,
        names=["c", "d", "e", "f,g"],
        views="flip",
        data=Overrides(["data=mnist", "data.path=x"]),
    )
    assert read_options(Keys, ["run='last'", "folder=null"]).folder is None


def test_an_existing_path_with_commas_and_equals_signs_is_one_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = "my run, ä=1/a,b"
    Path(path).mkdir(parents=True)
    assert read_options(Keys, ["last", f"names={path}"]).names == [path]
    assert read_options(Keys, [path]).run == path
    assert read_options(Keys, ["last", "names=my run, ä=2"]).names == ["my run", "ä=2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "run: missing; give run=…: a run"),
        ("rum=x", "rum=x: no key rum; did you mean run?"),
        ("run=x split=train", "split=train: choose from val, test"),
        ("run=x split=tset", "split=tset: did you mean test?"),
        ("run=x views=flop", "views=flop: did you mean flip?"),
        ("run=x count=0", "count=0: must be at least 1"),
        ("run=x count=1.5", "count=1.5: expected a whole number or null"),
        ("run=x count=1000001", "count=1000001: must be at most 1,000,000"),
        ("run=x share=inf", "share=inf: must be finite"),
        ("run=x share=nan", "share=nan: expected a number"),
        ("run=x fast=maybe", "fast=maybe: expected true or false"),
        ("run=x split=null", "split=null: choose from val, test"),
        ("run=x names=a,,b", "names=a,,b: expected one or more, separated by commas"),
        ("run=", "run=: expected text"),
        ("run=x folder=", "folder=: expected a path or null"),
        ("run=x run=y", "run=y: run is given twice; leave one out"),
        ("run=x data.path=a data.path=b", "data.path=b: data.path is given twice; leave one out"),
        ("x y", "y: an argument without a key is run=…, which is already given; write KEY=y"),
        ("run=x --count=2", "--count=2: no such flag; write count=…"),
    ],
)
def test_mistakes_name_the_word_and_the_remedy(words: str, message: str) -> None:
    with pytest.raises(InputError, match=r"^") as found:
        read_options(Keys, words.split())
    assert str(found.value) == message


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/one")
    assert read_options(Keys, ["run=~/a"]).run == "/home/one/a"
    assert read_options(Keys, ["run=~nobody-of-this-name/a"]).run == "~nobody-of-this-name/a"
    assert read_options(Keys, ["run=x", "names=~/a,b~"]).names == ["/home/one/a", "b~"]
    assert read_options(Keys, ["run=x", "folder=~"]).folder == Path("/home/one")


def test_all_mistakes_are_told_together() -> None:
    with pytest.raises(InputError, match=r"^countt=1: no key countt; did you mean count\?\nrun: missing"):
        read_options(Keys, ["countt=1"])


def test_the_help_names_every_key_in_80_columns() -> None:
    lines = describe(Keys, "do.py", "examples:\n  python scripts/do.py last").splitlines()
    assert lines[:4] == ["usage: python scripts/do.py KEY=VALUE …", "", "Do something.", ""]
    assert "At length." in lines
    text = "\n".join(lines)
    for start in (
        "  run=  ",
        "  split=test  ",
        "  folder=null ",
        "  fast=false ",
        "  names=a,b ",
        "  data.…=…",
    ):
        assert f"\n{start}" in text
    assert "copies; one of: none, flip" in text
    assert max(map(len, lines)) <= 80


def test_a_sweep_stands_for_its_best_run_and_last_for_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outputs = tmp_path / "outputs"
    first = write_run(outputs / "one" / "first", started="2026-01-01T00:00:00+00:00")
    assert find_trained("last").path == first.relative_to(tmp_path)
    sweep = write_sweep(outputs / "sweep")
    (sweep / "sweep.json").touch()
    assert find_trained(sweep).path == sweep / "11"
    assert find_trained("last", outputs).path == sweep / "11"
    later = write_run(outputs / "one" / "later", started="2026-02-02T00:00:00+00:00", state="failed")
    assert find_trained("last", outputs).path == later
    newest = {"started": "2026-03-03T00:00:00+00:00"}
    write_run(outputs / "debug" / "one" / "trial", trial=True, **newest)
    write_run(outputs / "one" / "search", tune="lr", trial=True, state="failed", **newest)
    assert find_trained("last", outputs).path == later
    assert find_trained("last", outputs / "debug").path == outputs / "debug" / "one" / "trial"
    called_so = write_run(outputs / "debug" / "run", **newest)
    assert find_trained("last", outputs).path == called_so
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_trained("~/outputs/one/first", outputs).path == first


def test_the_best_run_is_the_one_with_the_best_value_of_what_it_watched(tmp_path: Path) -> None:
    loss = {"monitor": "val/loss", "mode": "min"}
    write_run(tmp_path / "0", "seed=1", metrics={"val/loss": 0.5}, **loss)
    write_run(tmp_path / "1", "seed=2", metrics={"val/loss": 0.2}, **loss)
    write_run(tmp_path / "2", "seed=3", metrics={"val/loss": float("nan")}, **loss)
    write_run(tmp_path / "3", "seed=4", metrics={"val/loss": 0.1}, state="failed", **loss)
    (tmp_path / "sweep.json").touch()
    assert find_trained(tmp_path).path == tmp_path / "1"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("nowhere", r"run=nowhere: no such folder; give the folder of a run or of a sweep, or last"),
        ("file", r"run=file: a file, but a folder is needed; give the folder"),
        ("above", r"run=above: no run folder .* name one below it, such as above/run"),
        ("empty", r"run=empty: no run folder .* give a folder that train\.py made"),
        ("sweep", r"run=sweep: none of the sweep's 1 runs has a result \(failed\)"),
        ("last", r"run=last: no run in outputs; train one, or set outputs=FOLDER"),
        ("s3://bucket/run", r"run=s3://bucket/run: "),
    ],
)
def test_runs_that_are_not_there(
    wanted: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").touch()
    write_run(Path("above/run"))
    write_run(Path("sweep/0"), state="failed")
    Path("sweep/sweep.json").touch()
    with pytest.raises(InputError, match=message) as found:
        find_trained(wanted)
    assert len(str(found.value).splitlines()) == 1
