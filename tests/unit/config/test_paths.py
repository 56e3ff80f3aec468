"""Where runs write: what would take the place of somebody else's files is told."""

import sys
from pathlib import Path

import lightning.pytorch.loggers
import pytest
from conftest import Compose
from lightning.pytorch.profilers import SimpleProfiler

from project.config.cli import report, require_working_folder, with_home
from project.config.hydra_security import _hide_secrets
from project.config.validation import find_problems
from project.config.validation.paths import find_misplaced_outputs
from project.errors import InputError
from project.runtime.process import flush_streams


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "best.ckpt").write_text("weights of somebody's own")
    run = tmp_path / "outputs" / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "config.yaml").touch()
    return run


def misplaced(composer: Compose, run: Path, *overrides: str) -> list[str]:
    return list(find_misplaced_outputs(composer(*overrides, run=run)))


def test_what_runs_have_written_may_be_written_again(composer: Compose, run: Path) -> None:
    Path("metrics.csv").write_text("step,epoch,train/loss\n0,0,1.5\n")
    Path("train.log").write_text("[2026-01-31 09:30:00,123][INFO][project.train] model  CNN\n")
    Path("checkpoints").mkdir()
    Path("checkpoints", "last.ckpt").touch()
    Path("checkpoints", "last.ckpt.sha256").write_text("0123  last.ckpt\n")
    profiler = SimpleProfiler("profile", "hooks")
    profiler.setup("fit")
    profiler.describe()
    profiler.teardown("fit")
    overrides = (
        "profiler=simple",
        "trainer.profiler.dirpath=profile",
        "logger.csv.file=metrics.csv",
        "callbacks.last.dirpath=checkpoints",
        "hydra.job_logging.handlers.file.filename=train.log",
    )
    assert misplaced(composer, run, *overrides) == []


@pytest.mark.parametrize("name", ["CSVLogger", "TensorBoardLogger"])
def test_loggers_of_lightning_share_a_folder_in_which_each_run_is_a_version(
    composer: Compose, run: Path, name: str
) -> None:
    logger = getattr(lightning.pytorch.loggers, name)
    overrides = (f"+logger.more._target_=lightning.pytorch.loggers.{name}", "+logger.more.save_dir=logs")
    for version in range(2):
        assert misplaced(composer, run, *overrides) == []
        made = logger("logs")
        made.log_metrics({"train/loss": 1.0}, step=0)
        made.save()
        assert Path(made.log_dir).name == f"version_{version}"
    Path("logs", "mine.txt").write_text("mine")
    (line,) = misplaced(composer, run, *overrides)
    assert line.startswith("logger.more.save_dir=logs: contains other files, such as mine.txt")


@pytest.mark.parametrize("name", ["MLFlowLogger", "WandbLogger"])
def test_stores_of_many_runs_are_no_outputs_of_one(composer: Compose, run: Path, name: str) -> None:
    target = f"+logger.more._target_=lightning.pytorch.loggers.{name}"
    assert misplaced(composer, run, target, "+logger.more.save_dir=.", "+logger.more.notes=/a") == []


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("logger.csv.file=table.csv", "already exists and was not written by a run"),
        ("logger.csv.file=outputs/run/../../notes.txt", "already exists and was not written by a run"),
        ("logger.csv.file='~/table.csv'", "~ is expanded on the command line only"),
        ("callbacks.best.dirpath=full", "contains other files, such as best.ckpt"),
        ("callbacks.last.dirpath=outputs/../full", "contains other files, such as best.ckpt"),
    ],
)
def test_others_files_are_told(composer: Compose, run: Path, override: str, told: str) -> None:
    (line,) = misplaced(composer, run, override)
    assert line.startswith(override.replace("'", "") + f": {told}")


def test_links_that_lead_out_of_a_run_folder_are_followed(composer: Compose, run: Path) -> None:
    (run / "checkpoints").symlink_to(run.parent.parent / "full")
    (run / "metrics.csv").symlink_to(run.parent.parent / "table.csv")
    told = misplaced(composer, run)
    assert [line.partition("=")[0] for line in told] == [
        *("callbacks.best.dirpath", "callbacks.last.dirpath", "logger.csv.file"),
    ]
    (run.parent.parent / "full" / "best.ckpt.sha256").write_text("0123  best.ckpt\n")  # moved there
    (run.parent.parent / "table.csv").write_text("step,val/loss\n")
    assert misplaced(composer, run) == []


def test_another_runs_folder_is_no_place(composer: Compose, run: Path) -> None:
    override = f"logger.csv.file={run}/metrics.csv"
    assert misplaced(composer, run, override) == []
    (line,) = misplaced(composer, run.parent / "other", override)
    assert line.startswith(f"{override}: is inside the folder of another run, {run}")


def test_relative_places_follow_the_working_directory(composer: Compose, run: Path) -> None:
    overrides = ("callbacks.best.dirpath=full", "hydra.job.chdir=true")
    assert misplaced(composer, run, *overrides) == []


def test_a_tilde_that_nothing_reads_is_told(composer: Compose) -> None:
    (line,) = find_problems(composer("paths.outputs='~/runs'"))
    assert line == "paths.outputs=~/runs: ~ is expanded on the command line only; write ${oc.env:HOME}"


def test_a_tilde_on_the_command_line_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/some one")
    assert with_home("data.path=~/photos") == "data.path='/home/some one/photos'"
    assert with_home("+x.dir='~'") == "+x.dir='/home/some one'"
    for kept in ("~callbacks.best", "name=a~b", "data.path=~nobody-of-this-name/x", "optim.lr=0.1", "-m"):
        assert with_home(kept) == kept


def test_a_lost_working_directory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    require_working_folder()
    (tmp_path / "gone").rmdir()
    with pytest.raises(
        InputError, match=r"the working directory does not exist \(No such file or directory\)"
    ):
        require_working_folder()


def test_a_reader_that_has_ended_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(BrokenPipeError(32, "Broken pipe")) == 1
    assert capsys.readouterr().err == "error: standard output: the reading process has ended\n"


def test_streams_that_were_closed_before_the_start_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    _hide_secrets(sys.stdout)
    flush_streams()
