"""Renamed keys and classes of earlier versions get their current names."""

import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from PIL import Image

from project.runs import migrations
from project.runs.migrations import RENAMED_CLASSES, RENAMED_KEYS, migrate, new_name, old_keys

OLD_RUN = ROOT / "tests" / "data" / "run_of_0_1"


def targets(node: Any) -> list[str]:
    if isinstance(node, list):
        return [name for child in node for name in targets(child)]
    if not isinstance(node, dict):
        return []
    own = [node["_target_"]] if "_target_" in node else []
    return [*own, *(name for child in node.values() for name in targets(child))]


def test_an_old_run_gets_todays_names() -> None:
    old = yaml.safe_load((OLD_RUN / "config.yaml").read_text().replace("@RUN@", "run"))
    assert "find" in set(old_keys(old))
    new = migrate(old)
    assert list(old_keys(new)) == []
    assert (new["tune"], new["retry_failed"], "find" in new) == (None, False, False)
    for target in targets(new):
        module, _, name = target.rpartition(".")
        assert hasattr(import_module(module), name), target
    assert migrate(new) == new


@pytest.mark.parametrize("target", sorted(set(RENAMED_CLASSES.values())))
def test_renamed_classes_exist(target: str) -> None:
    module, _, name = target.rpartition(".")
    assert hasattr(import_module(module), name)


def test_no_new_name_is_an_old_one() -> None:
    assert not set(RENAMED_KEYS) & set(RENAMED_KEYS.values())
    assert not set(RENAMED_CLASSES) & set(RENAMED_CLASSES.values())


def test_keys_move_with_what_refers_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"a": {"old": 1, "other": 2}, "top": "${a.old}/${a.other}"}
    monkeypatch.setattr(migrations, "RENAMED_KEYS", {"a.old": "a.new", "top": "a.moved"})
    assert migrate(config) == {"a": {"other": 2, "new": 1, "moved": "${a.new}/${a.other}"}}
    monkeypatch.setattr(migrations, "RENAMED_KEYS", {"c.s": "c.v", "c.s.images": "c.v.max_images"})
    assert migrate({"c": {"s": {"images": 3, "n": 4}}}) == {"c": {"v": {"max_images": 3, "n": 4}}}
    assert new_name("c.s.n") == "c.v.n"
    assert new_name("c.t") == ""


def test_another_packages_arguments_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "RENAMED_KEYS", {"model.hidden": "model.hidden_dim"})
    mine = {"task": {}, "model": {"_target_": "mine.Net", "hidden": 3}}
    assert migrate(mine) == mine
    ours = {"model": {"_target_": "project.modules.networks.cnn.CNN", "hidden": 3}}
    assert "hidden_dim" in migrate(ours)["model"]


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """Copy the stored run, with its paths changed to the copy."""
    run = tmp_path / "run"
    shutil.copytree(OLD_RUN, run)
    for file in run.rglob("*.*"):
        if file.suffix in (".yaml", ".json", ".csv", ".log"):
            text = file.read_text().replace("@PROJECT@", str(ROOT)).replace("@RUN@", str(run))
            file.write_text(text.replace("@CWD@", str(tmp_path)))
    return run


def command(run: Path, name: str, *words: str) -> str:
    line = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *words]
    done = subprocess.run(line, cwd=run.parent, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_commands_take_a_run_of_the_version_before(old_run: Path) -> None:
    status = json.loads((old_run / "status.json").read_text())
    command(old_run, "evaluate", "run=run")
    figures = json.loads((old_run / "evaluation" / "test" / "evaluation.json").read_text())["figures"]
    for name, metric in (("accuracy", "test/acc"), ("loss", "test/loss")):
        assert figures[name]["value"] == pytest.approx(status["metrics"][metric], rel=1e-5)
    Image.new("L", (8, 8), 100).save(old_run.parent / "image.png")
    assert "1 predicted" in command(old_run, "predict", "run=run", "input=image.png")
    assert f"{status['metrics']['test/acc']:.4f}" in command(old_run, "compare", "run")
    command(old_run, "report", "run=run")
    assert f"{status['metrics']['test/acc']:.4f}" in (old_run / "report.html").read_text()


@pytest.mark.slow
def test_a_run_of_the_version_before_is_exported_and_resumed(old_run: Path) -> None:
    exported = command(old_run, "export", "run=run", "format=torch_export", "benchmark_s=0.05")
    assert "+0.00" in exported
    trained = command(old_run, "train", "resume=run", "trainer.max_epochs=3")
    assert "3/3" in trained
    status = json.loads((old_run / "status.json").read_text())
    assert (status["state"], status["progress"]["epochs"]) == ("done", 3)
