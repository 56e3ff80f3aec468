"""Hooks into Hydra's internals: the same configurations as without them, and one place for private names."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import project

PRIVATE = re.compile(r"\bhydra\._internal|\bomegaconf\._|\._get_node\(|\._value\(\)")
HOME = Path(project.__file__).parent


def composed(switch: str, cwd: Path) -> str:
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "experiment=mnist_best", "--cfg", "job"]
    environment = os.environ | {"PROJECT_PLAIN_HYDRA": switch}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=True, timeout=120
    ).stdout


@pytest.mark.slow
def test_configurations_are_those_of_plain_hydra(tmp_path: Path) -> None:
    assert composed("", tmp_path) == composed("1", tmp_path) != ""


def test_private_names_stand_in_two_files() -> None:
    found = {str(file.relative_to(HOME)) for file in HOME.rglob("*.py") if PRIVATE.search(file.read_text())}
    assert found == {"config/hydra_patches.py", "runtime/yaml_files.py"}


@pytest.mark.slow
def test_the_newest_pre_releases_pass(capfd: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("newest_hydra", ROOT / "benchmarks" / "newest_hydra.py")
    assert spec is not None
    assert spec.loader is not None
    newest_hydra = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(newest_hydra)
    code = newest_hydra.main()
    if code == newest_hydra.SKIPPED:
        pytest.skip("no uv or no network")
    assert code == 0, capfd.readouterr().out
