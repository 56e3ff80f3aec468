"""Tests of the repository that `project-new` writes. A slow test of the wheel trains in it."""

import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from project.errors import InputError
from project.new_repository import Options, main, write_repository


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_repository("wind-forecast", tmp_path / "wind")
    return tmp_path / "wind"


def test_files_are_rendered_and_valid(folder: Path) -> None:
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert files == [
        ".gitignore",
        "README.md",
        "conf/data/wind_forecast.yaml",
        "conf/experiment/wind_forecast.yaml",
        "conf/task/wind_forecast.yaml",
        "pyproject.toml",
        "src/wind_forecast/__init__.py",
        "src/wind_forecast/data.py",
        "src/wind_forecast/module.py",
        "tests/test_training.py",
    ]
    for name in files:
        text = (folder / name).read_text()
        assert "{{" not in text
        if name.endswith(".py"):
            compile(text, name, "exec")
        elif name.endswith(".yaml"):
            assert isinstance(yaml.safe_load(text), dict)
    assert yaml.safe_load((folder / "conf/task/wind_forecast.yaml").read_text())["optimizer"] == "${optim}"


def test_project_registers_its_package_and_depends_on_this_one(folder: Path) -> None:
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entry_points = project["project"]["entry-points"]
    assert entry_points == {"project.config_targets": {"wind_forecast": "wind_forecast"}}
    assert project["project"]["dependencies"] == [f"{own['name']}>={own['version']}"]
    source = project["tool"]["uv"]["sources"]["project"]  # the tests run in a checkout
    assert Path(source["path"]) == ROOT
    assert len((folder / "README.md").read_text().splitlines()) <= 45


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("3d", r"name=3d: not a valid package name \(expected letters"),
        ("class", "name=class: not a valid package name"),
        ("json", "name=json: a package json is installed already; choose another"),
        ("torch", "name=torch: a package torch is installed already"),
    ],
)
def test_names_that_cannot_be_packages_are_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(Options(name=name, folder=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_an_existing_folder_stays_as_it_is(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    with pytest.raises(InputError, match=r"folder=.*wind: already exists; give another with folder=FOLDER"):
        main(Options(name="wind-forecast", folder=folder))
    assert (folder / "README.md").read_text() == "mine"
