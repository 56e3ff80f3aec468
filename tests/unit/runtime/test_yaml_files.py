"""YAML files: limits, encodings, caching, and the lines of keys."""

import os
import sys
from pathlib import Path

import pytest
from conftest import CONF, ROOT
from omegaconf import OmegaConf

from project.config import resume
from project.config.hydra_patches import ConfigFolder
from project.config.validation.declared_keys import read_option
from project.errors import InputError
from project.inference import run_config
from project.runs import results
from project.runs.results import DamagedError
from project.runs.run_folder import RunFolder
from project.runtime import yaml_files
from project.runtime.yaml_files import line_of, load, read_mapping, read_text

sys.path.insert(0, str(ROOT / "tests" / "faults"))
import wrong_presets


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    wrong_presets.write(folder)
    return folder


@pytest.mark.parametrize("name", [name for name in wrong_presets.GOOD if name != "based"])
def test_encodings_and_line_ends_change_nothing(own: Path, name: str) -> None:
    found = ConfigFolder("main", str(own)).load_config(f"experiment/{name}")
    assert found.header["package"] == "_global_"
    assert found.config.optim.lr == 0.5


def test_files_of_ours_are_read_as_omegaconf_reads_them() -> None:
    files = sorted(CONF.rglob("*.yaml"))
    assert len(files) >= 60
    for file in files:
        assert load(file) == OmegaConf.load(file), file


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("seed: 1\n")
    assert read_mapping(file) == {"seed": 1}
    file.write_text("seed: 1234\n")
    assert read_mapping(file) == {"seed": 1234}


def test_pipes_and_folders_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(InputError, match=r"pipe.yaml: not a regular file; give a text file"):
        read_text(tmp_path / "pipe.yaml")
    with pytest.raises(InputError, match=r"is a folder; give a text file"):
        read_text(tmp_path)
    with pytest.raises(InputError, match=r"lost.yaml: No such file or directory"):
        read_text(tmp_path / "lost.yaml")


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("seed: 1\n")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"a.yaml: cannot be read \(Permission denied\)"):
        read_mapping(file)


def test_aliases_are_expanded_when_counted(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("base: &base {lr: 0.1}\nmine:\n  <<: *base\n  momentum: 0.9\n")
    assert read_mapping(file)["mine"] == {"lr": 0.1, "momentum": 0.9}
    file.write_text("\n".join(f"a{n}: &a{n} [{'*a' + str(n - 1) if n else 1}]" for n in range(120)))
    with pytest.raises(InputError, match=r"a.yaml:99: nested more than 100 levels deep"):
        read_mapping(file)


def test_keys_are_found_in_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("# head\noptim:\n  lr: 0.1\n  betas: {a: 1,\n    b: 2}\noptim.lr: 3\n")
    lines = {key: line_of(file, key) for key in ("optim", "optim.betas", "optim.betas.b", "optim.x", "lr")}
    assert lines == {"optim": 2, "optim.betas": 4, "optim.betas.b": 5, "optim.x": 0, "lr": 0}


def test_the_first_of_several_folders_counts_and_caches_are_left_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, lr in ((first, 1), (second, 2)):
        (folder / "optim").mkdir(parents=True)
        (folder / "optim" / "mine.yaml").write_text(f"defaults: [base]\nlr: {lr}\nnested: {{a: 1}}\n")
    (second / "optim" / "base.yaml").write_text("momentum: 3\nnested: {b: 2}\n")
    expected = {"momentum": 3, "nested": {"b": 2, "a": 1}, "lr": 1}
    for _ in range(2):
        assert read_option([first, second], "optim", "mine") == expected
    assert yaml_files.read_mapping(second / "optim" / "base.yaml") == {"momentum": 3, "nested": {"b": 2}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"model: {a: 1\n", r"config\.yaml:1: while parsing a flow mapping"),
        (
            wrong_presets.LAUGHS.encode(),
            r"config\.yaml:6: more than 200000 values with aliases expanded",
        ),
        (b"name: caf\xe9\n", r"config\.yaml:1: not UTF-8 text"),
        (b"- a\n", r"config\.yaml:1: a list, but keys with values are needed"),
    ],
)
def test_a_run_folders_broken_records_are_named_with_their_line(
    tmp_path: Path, text: bytes, says: str
) -> None:
    run = RunFolder(tmp_path)
    run.composed_file.parent.mkdir()
    for file in (run.config_file, run.composed_file):
        file.write_bytes(text)
    with pytest.raises(InputError, match=rf"resume=.*{says}"):
        resume._read(run, run.composed_file, "trainer")
    with pytest.raises(InputError, match=rf"run=.*{says}"):
        run_config.read_config(run)
    if says.endswith(("aliases", "text")):
        with pytest.raises(DamagedError, match=says):
            results._load_config(run.config_file)
