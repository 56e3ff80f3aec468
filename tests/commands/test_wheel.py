"""The project as an installed library: its wheel in another environment, used outside the checkout."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from conftest import ROOT
from killed_examples import KILLED, MARK, assert_equal_runs, runs_below, state_of, words_for
from table_examples import write_tables

pytest.importorskip("hatchling", reason="the wheel's build backend is not installed")

LIMIT_S = 300


class Environment:
    """Virtual environment with the wheel, and with the libraries of this one.

    Args:
        folder: of the environment.
    """

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.bin = folder / "bin"
        self.packages = Path(
            sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        )

    def install(self, source: Path, kind: str = "standard") -> None:
        """Build a project by hatchling and unpack its wheel; without pip, which may lack here."""
        built = self.packages.parent / f"built_{source.name}"
        command = [sys.executable, "-m", "hatchling", "build", "-t", f"wheel:{kind}"]
        subprocess.run([*command, "-d", str(built)], cwd=source, check=True, capture_output=True)
        (wheel,) = built.glob("*.whl")
        subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(self.packages)], check=True)

    def command(self, name: str, *words: str) -> list[str]:
        """Return the command that a console script of the wheel runs."""
        return [str(self.bin / "python"), "-c", f"from project.commands import {name}; {name}()", *words]

    def run(self, name: str, *words: str, cwd: Path, code: int = 0) -> str:
        """Run a command to its end and return its output."""
        done = subprocess.run(
            self.command(name, *words),
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            env=variables(),
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


def variables() -> dict[str, str]:
    """Return an environment that does not lead to the checkout."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    return {key: value for key, value in os.environ.items() if key not in hidden} | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = Environment(tmp_path_factory.mktemp("environment"))
    made.install(ROOT)
    (made.packages / "base.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    for helper in ("table_examples", "killing_callback"):
        shutil.copy(ROOT / "tests" / "helpers" / f"{helper}.py", made.packages)
    return made


@pytest.fixture(scope="module")
def demo(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository by `project-new`, installed in the environment."""
    folder = tmp_path_factory.mktemp("user")
    environment.run("new", "demo", cwd=folder)
    environment.install(folder / "demo", "editable")
    return folder / "demo"


def test_wheel_holds_configuration_templates_and_plugins(environment: Environment, tmp_path: Path) -> None:
    assert (environment.packages / "project" / "conf" / "train.yaml").is_file()
    assert (environment.packages / "hydra_plugins" / "project_sweeps.py").is_file()
    script = "import project, project.config.config_files as c; print(project.__file__, c.conf_folder())"
    done = subprocess.run(
        [str(environment.bin / "python"), "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env=variables(),
    )
    assert str(ROOT) not in done.stdout
    (record,) = environment.packages.glob("project-*.dist-info/entry_points.txt")
    commands = [line.partition(" = ") for line in record.read_text().splitlines() if " = " in line]
    names = ("train", "evaluate", "predict", "export", "report", "compare", "new")
    assert {(f"project-{name}", f"project.commands:{name}") for name in names} <= {
        (name, target) for name, _, target in commands
    }


def test_killed_run_and_killed_sweep_of_another_package_resume_bit_equal(
    environment: Environment, tmp_path: Path
) -> None:
    words = words_for("table_examples.Tagger")
    folders = [tmp_path / name for name in ("unbroken", "killed", "swept")]
    for folder in folders:
        folder.mkdir()
        write_tables(folder)
    unbroken, killed, swept = folders
    (unbroken / MARK).touch()
    environment.run("train", *words, cwd=unbroken)

    environment.run("train", *words, cwd=killed, code=-signal.SIGKILL)
    environment.run("train", "resume=last", cwd=killed)
    assert_equal_runs(*runs_below(unbroken), *runs_below(killed))
    environment.run("report", "run=last", cwd=killed)
    assert (runs_below(killed)[0] / "report.html").stat().st_size > 10_000

    sweep = ["-m", *words, "seed=1,2", "hydra.launcher.jobs=1"]
    assert "killed by SIGKILL" in environment.run("train", *sweep, cwd=swept, code=1)
    assert sorted(map(state_of, runs_below(swept))) != ["done", "done"]
    environment.run("train", "resume=last", "retry_failed=true", cwd=swept)
    jobs = runs_below(swept)
    assert [state_of(run) for run in jobs] == ["done", "done"]
    assert_equal_runs(*runs_below(unbroken), jobs[0])
    environment.run("report", str(jobs[0].parent), cwd=swept)
    assert "val_auroc" in (jobs[0].parent / "report.html").read_text()


def test_repository_of_project_new_trains_sweeps_resumes_and_reports(
    environment: Environment, demo: Path
) -> None:
    conf = ["--config-dir", "conf"]
    preset = ["experiment=demo", "trainer.max_epochs=2", *KILLED]
    sweep = ["-m", "task.width=8,16", "hydra.launcher.jobs=1", "callbacks.last.every_steps=1"]
    environment.run("train", *conf, *preset, *sweep, cwd=demo, code=1)
    states = [state_of(run) for run in runs_below(demo)]
    assert len(states) == 2
    assert states.count("done") == 1
    printed = environment.run("train", "resume=last", "retry_failed=true", cwd=demo)
    assert re.search(r"^ *best +[01] +(8|16) ", printed, re.MULTILINE), printed
    winner = "--config-dir conf experiment=demo trainer.max_epochs=2"
    assert f"scripts/train.py {winner}" in printed
    assert [state_of(run) for run in runs_below(demo)] == ["done", "done"]
    (folder,) = demo.glob("outputs/sweep/*")
    assert (folder / "conf" / "experiment" / "demo.yaml").read_text() == (
        demo / "conf" / "experiment" / "demo.yaml"
    ).read_text()
    environment.run("report", str(folder), cwd=demo)
    report = (folder / "report.html").read_text()
    assert f"scripts/train.py {winner} " in report
    assert "--config-path" not in report
    assert "smallest val/loss first" in environment.run("compare", "outputs", cwd=demo)
    (demo / "conf" / "optim").mkdir()
    (demo / "conf" / "optim" / "adam.yaml").write_text("lr: 1\n")
    wrong = environment.run("train", *conf, "experiment=demo", cwd=demo, code=2)
    assert "conf/optim/adam.yaml: not read, optim/adam.yaml of this project is found first; rename" in wrong
    (demo / "conf" / "optim" / "adam.yaml").unlink()
    wrong = environment.run("train", *conf, "experiment=dmeo", cwd=demo, code=2)
    assert "experiment=dmeo: no such option; did you mean demo?" in wrong
    wrong = environment.run("train", *conf, "experiment=demo", "task.widht=8", cwd=demo, code=2)
    assert "did you mean task.width?" in wrong


def test_tests_of_the_repository_pass(environment: Environment, demo: Path) -> None:
    done = subprocess.run(
        [str(environment.bin / "python"), "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=demo,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env=variables(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
