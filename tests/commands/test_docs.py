"""Tests that commands and code in the README and the guide compose, pass the checks and train."""

import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, Compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import OmegaConf

from project.config.command_options import read_options
from project.config.validation import find_problems
from project.inference.evaluate.options import Options as Evaluate
from project.inference.explain.options import Options as Explain
from project.inference.export.options import Options as Export
from project.inference.predict.command import Options as Predict
from project.inference.replay.options import Options as Replay
from project.inference.serve.options import Options as Serve
from project.reporting.compare import Options as Compared
from project.reporting.dataset.options import Options as Data
from project.reporting.html.command import Options as Report
from project.reporting.runs.command import Options as Runs
from project.reporting.runs.watch import Options as Watch
from project.sweeps.sweepers.conditions import Conditions
from project.sweeps.sweepers.grid import grid
from project.sweeps.sweepers.search_space import find_corners, parse_space, trial_overrides

README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
EXTENDING = (ROOT / "docs" / "extending.md").read_text()
COMMANDS = {
    "evaluate": Evaluate,
    "predict": Predict,
    "explain": Explain,
    "serve": Serve,
    "export": Export,
    "report": Report,
    "compare": Compared,
    "replay": Replay,
    "runs": Runs,
    "watch": Watch,
    "data": Data,
}


def commands(script: str) -> list[tuple[str, str]]:
    """Return the page and the arguments of each command in the documentation."""
    pattern = re.compile(rf"^.*?scripts/{script}\.py +(.*?)(?: +#.*)?$", re.MULTILINE)
    return [(page.name, words) for page in PAGES for words in pattern.findall(bash_of(page))]


def bash_of(page: Path) -> str:
    return "\n".join(re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL))


def block(start: str) -> str:
    (found,) = re.findall(rf"```\w+\n({re.escape(start)}.*?)```", EXTENDING, re.DOTALL)
    return found


@pytest.fixture
def mynet(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("project.modules.networks.mynet")
    exec(block("# src/project/modules/networks/mynet.py"), module.__dict__)  # noqa: S102
    monkeypatch.setitem(sys.modules, "project.modules.networks.mynet", module)


@pytest.mark.parametrize("page", sorted({page for page, _ in commands("train")}))
def test_training_commands_compose_and_pass_the_checks(
    page: str, composer: Compose, image_folder: Path, tmp_path: Path
) -> None:
    (weights := tmp_path / "convnext.pth").touch()
    photo_table = write_photo_table(tmp_path, image_folder)
    for command in (words for where, words in commands("train") if where == page):
        words = [word for word in shlex.split(command.replace("--cfg job", "")) if not word.startswith("-")]
        if any(word.startswith(("resume=", "ckpt_path=")) for word in words):
            continue  # run by test_command_line.py
        words = [word.replace("data.path=photos", f"data.path={image_folder}") for word in words]
        words = [word.replace("data.table=photos.csv", f"data.table={photo_table}") for word in words]
        words = [word.replace("=convnext.pth", f"={weights}") for word in words]
        if "model=mynet" in words:
            words = [
                word for word in words if not word.startswith("model")
            ]  # built by test_network_of_the_guide_has_gradients
        if f"data.path={image_folder}" in words:
            words.append("data.batch_size=16")  # the folder has few images
        for overrides in points_of(words):
            assert list(find_problems(composer(*overrides))) == [], command


def write_photo_table(folder: Path, images: Path) -> Path:
    """Write the table of the guide: 60 images with a class, two labels and a weight."""
    files = sorted(images.glob("train/*/*.jpg"))
    rows = [
        f"{file},{file.parent.name},{index % 2},{index % 3 // 2},{index / 7}"
        for index, file in enumerate(files)
    ]
    (folder / "photos.csv").write_text("\n".join(["image,animal,cat,dog,weight", *rows]))
    return folder / "photos.csv"


def test_guide_shows_every_command() -> None:
    assert len(commands("train")) > 40
    assert all(len(commands(script)) >= 2 for script in COMMANDS)


@pytest.mark.parametrize("script", COMMANDS)
def test_later_commands_have_known_keys(script: str) -> None:
    for page, command in commands(script):
        options = read_options(COMMANDS[script], shlex.split(command))
        assert options, page


def points_of(words: list[str]) -> list[list[str]]:
    """Return the overrides of each job of a command, or of the corners of its search space."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    own = [word for word in words if word.startswith("hydra")]
    words = [word for word in words if word not in own]
    if {"hydra/sweeper=optuna", "hydra/sweeper=asha", "hydra/sweeper=pbt"} & set(own):
        constant, space = parse_space(words, hydra.config_loader)
        return [[*own, *constant, *trial_overrides(values)] for values in find_corners(space)]
    points = grid(words, hydra.config_loader)
    parser = OverridesParser.create()
    given = [parser.parse_override(word).value() for word in own if word.startswith("hydra.sweeper.only_if=")]
    keys = {text.partition("=")[0] for point in points for text in point.varied}
    conditions = Conditions(dict(*given), points[0].constant, keys)
    return [[*own, *point.constant, *conditions.keep(point.varied)] for point in points]


def test_network_of_the_guide_has_gradients(composed: Compose, mynet: None) -> None:
    config = composed("data=mnist")
    config.model = OmegaConf.create(block("# conf/model/mynet.yaml"))
    network = instantiate(config.model, _convert_="all", width=64)
    logits = network(torch.randn(4, 1, 28, 28))
    assert logits.shape == (4, 10)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_paths_in_the_architecture_page_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    (tree,) = re.findall(r"```\n(conf/.*?)```", page, re.DOTALL)
    paths = [line.split()[0] for line in tree.splitlines()]
    packages = {path.name for path in (ROOT / "src" / "project").iterdir() if (path / "__init__.py").exists()}
    assert packages == {
        Path(path).name for path in paths if path.startswith("src/project/") and path[-1] == "/"
    }
    for path in (*paths, *files_named(page)):
        assert (ROOT / path).exists(), path


def files_named(page: str) -> Iterator[str]:
    """Yield the files in the architecture page's table."""
    for path in re.findall(r"\| `([a-z_/]+\.py)` \|", page):
        yield f"src/project/{path}"


def test_links_are_valid() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_navigation_lists_all_pages() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    named = set(re.findall(r"[a-z-]+\.md", str(navigation)))
    assert named == {page.name for page in PAGES} - {"README.md"}
    assert len(README.read_text().splitlines()) <= 200
