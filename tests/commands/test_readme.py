"""What the README shows works: its commands compose and pass the checks, its network trains."""

import re
import shlex
import sys
import types
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Compose
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf

from project.config.command_options import read_options
from project.config.validation import find_problems
from project.inference.evaluate.options import Options as Evaluate
from project.inference.export.options import Options as Export
from project.inference.predict.options import Options as Predict
from project.reporting.html.command import Options as Report
from project.sweeps.sweepers.grid import grid
from project.sweeps.sweepers.search_space import find_corners, parse_space, trial_overrides

README = (ROOT / "README.md").read_text()
COMMAND = re.compile(
    r"^(?:pip install uv && uv run )?python scripts/train\.py (.*?)(?: +#.*)?$", re.MULTILINE
)


def block(start: str) -> str:
    (found,) = re.findall(rf"```\w+\n({re.escape(start)}.*?)```", README, re.DOTALL)
    return found


@pytest.fixture
def mynet(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("project.modules.networks.mynet")
    exec(block("# src/project/modules/networks/mynet.py"), module.__dict__)  # noqa: S102
    monkeypatch.setitem(sys.modules, "project.modules.networks.mynet", module)


def test_every_training_command_composes_and_passes_the_checks(
    composer: Compose, image_folder: Path, tmp_path: Path
) -> None:
    seen = 0
    (weights := tmp_path / "convnext.pth").touch()
    for command in COMMAND.findall(README):
        words = [word for word in shlex.split(command) if not word.startswith("-")]
        if any(word.startswith(("resume=", "ckpt_path=")) for word in words):
            continue  # test_command_line.py runs these
        words = [word.replace("data.path=photos", f"data.path={image_folder}") for word in words]
        words = [word.replace("=convnext.pth", f"={weights}") for word in words]
        if "model=mynet" in words:
            words = [word for word in words if not word.startswith("model")]  # see below
        if f"data.path={image_folder}" in words:
            words.append("data.batch_size=16")  # there are few
        for overrides in points_of(words):
            assert list(find_problems(composer(*overrides))) == [], command
        seen += 1
    assert seen == 25


@pytest.mark.parametrize(
    ("script", "kind", "commands"),
    [("evaluate", Evaluate, 3), ("predict", Predict, 1), ("export", Export, 1), ("report", Report, 1)],
)
def test_every_command_after_training_has_known_keys(script: str, kind: type, commands: int) -> None:
    found = re.findall(rf"^python scripts/{script}\.py (.*?)(?: +#.*)?$", README, re.MULTILINE)
    assert len(found) == commands
    for command in found:
        assert read_options(kind, shlex.split(command)).run in ("last", ["last"]) or "sweep" in command


def points_of(words: list[str]) -> list[list[str]]:
    """The overrides of each job of a command, or of points from all over the space that it searches."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    own = [word for word in words if word.startswith("hydra")]
    words = [word for word in words if word not in own]
    if "hydra/sweeper=optuna" in own:
        constant, space = parse_space(words, hydra.config_loader)
        return [[*own, *constant, *trial_overrides(values)] for values in find_corners(space)]
    return [[*own, *point.constant, *point.varied] for point in grid(words, hydra.config_loader)]


def test_the_readmes_own_network_builds_and_learns(composed: Compose, mynet: None) -> None:
    config = composed("data=mnist")
    config.model = OmegaConf.create(block("# conf/model/mynet.yaml"))
    network = instantiate(config.model, _convert_="all", width=64)
    logits = network(torch.randn(4, 1, 28, 28))
    assert logits.shape == (4, 10)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_tree_names_what_is_there() -> None:
    tree = block_without_language("conf/train.yaml")
    paths = [line.split()[0] for line in tree.splitlines()]
    assert len(paths) == 20
    for path in paths:
        assert (ROOT / path.replace("<group>/", "")).exists(), path
    assert len(README.splitlines()) < 270


def block_without_language(start: str) -> str:
    (found,) = re.findall(rf"```\n({re.escape(start)}.*?)```", README, re.DOTALL)
    return found
