"""Tests of the command explain: files of a run and image files, written results, refused requests."""

import json
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import forked_command
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from project.config.command_options import read_options
from project.errors import InputError
from project.figures.explanation_sheet import Explained, Tile, explanation_sheet, overlay
from project.inference.explain.command import percent
from project.inference.explain.explainer import Explainer
from project.inference.explain.neighbors import find_neighbors
from project.inference.explain.options import Options, main
from project.inference.load_run import load_run
from project.reporting.html.evaluations import read_evaluations
from project.reporting.html.images import run_gallery
from project.runs.comparison import find_trained
from project.runs.provenance import now

Command = Callable[..., str]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """Train a network briefly, so that it makes mistakes; return the outputs folder."""
    cwd = tmp_path_factory.mktemp("explain")
    words = [
        "model=resnet",
        "model.depth=8",
        "model.width=4",
        "data=image_folder",
        f"data.path={image_folder}",
    ]
    words += ["data.resize=20", "data.batch_size=8", "trainer.max_epochs=1", "logger=none", "optim.lr=1e-5"]
    forked_command.run(*words, cwd=cwd)
    return cwd / "outputs"


@pytest.fixture
def command(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> Command:
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        main(read_options(Options, [*words, f"outputs={outputs}", "accelerator=cpu"]))
        return capfd.readouterr().out

    return run


def test_worst_mistakes_are_explained_and_shown_in_the_report(command: Command, outputs: Path) -> None:
    out = command("run=last", "count=3")
    run = find_trained("last", outputs)
    folder = run.path / "evaluation" / "explain-grad_cam-test"
    assert "Grad-CAM of body, " in out
    assert "nearest of 54 training images" in out  # 6 of 60 validate
    result = json.loads((folder / "explanations.json").read_text())
    rows = result["explanations"]
    assert 0 < len(rows) <= 3
    assert all(row["label"] != row["prediction"] == row["target"] for row in rows)
    assert [row["probability"] for row in rows] == sorted((row["probability"] for row in rows), reverse=True)
    assert all(Path(row["file"]).parent.name == row["label"] for row in rows)
    assert all(Path(one["file"]).parent.name == one["label"] for row in rows for one in row["neighbors"])
    stored = np.load(folder / "maps.npz")
    assert stored["maps"].shape == stored["attributions"].shape == (len(rows), 20, 20)
    assert stored["maps"].min() >= 0
    assert stored["maps"].max() == 1
    assert [image.name for image in run_gallery(run.path).images] == ["Explanations"]
    assert "TensorBoard" not in out  # the run has no event files
    with SummaryWriter(run.path) as events:
        for tag in ("test/confusion", "test/mistakes", "train/images"):
            events.add_image(tag, torch.zeros(3, 4, 4))
    assert read_evaluations(run.path) == []  # its JSON has no metrics
    for _ in range(2):
        assert "shown in TensorBoard" in command("run=last", "count=2")  # replaces its own files
    titles = [image.name for image in run_gallery(run.path).images]
    assert titles == ["Confusion, test", "Mistakes, test", "Explanations", "Images, train"]
    (added,) = run.path.glob("events.out.tfevents.*.added.explain-grad_cam-test")
    shown = EventAccumulator(str(added)).Reload().Images("visuals/test/explain-grad_cam-test")
    with (
        Image.open(folder / "explanations.png") as sheet,
        Image.open(BytesIO(shown[0].encoded_image_string)) as own,
    ):
        assert np.array_equal(np.asarray(sheet), np.asarray(own))
    assert shown[0].step == torch.load(run.last_checkpoint, weights_only=True)["global_step"] > 0
    status = json.loads((run.path / "status.json").read_text())
    running = status | {"state": "running", "pid": os.getpid(), "started": now()}
    (run.path / "status.json").write_text(json.dumps(running))
    assert "TensorBoard" not in command("run=last", "count=2")  # it would not return to the curves
    (run.path / "status.json").write_text(json.dumps(status))
    (folder / "notes.txt").touch()
    with pytest.raises(InputError, match=r"contains notes.txt, which is not part of an explanation"):
        command("run=last", "count=2")


def test_files_with_unusual_names_are_explained(command: Command, image_folder: Path) -> None:
    folder = Path("photos of <b>'me' ü")
    folder.mkdir()
    for number, file in enumerate(sorted((image_folder / "test" / "ant").iterdir())):
        Image.open(file).save(folder / f"<i>{number} & ü.png")
    (folder / "broken.png").write_bytes(b"no image")
    out = command(
        "run=last", f"input={folder}", "target=bee", "neighbors=0", "method=occlusion", "output=out"
    )
    result = json.loads(Path("out/explanations.json").read_text())
    assert len(result["explanations"]) == 5
    assert {row["target"] for row in result["explanations"]} == {"bee"}
    assert {row["label"] for row in result["explanations"]} == {None}
    assert "<i>0 & ü.png" in out
    assert sorted(path.name for path in Path("out").iterdir()) == [
        *("explanations.json", "explanations.png", "maps.npz"),
    ]


def test_images_of_a_split_are_chosen(command: Command) -> None:
    def indices(*words: str) -> list[int]:
        command("run=last", "neighbors=0", "output=out", *words)
        rows = json.loads(Path("out/explanations.json").read_text())["explanations"]
        assert all(row["target"] == row["label"] for row in rows)
        return [row["index"] for row in rows]

    assert indices("images=first", "count=4", "target=label") == [0, 1, 2, 3]
    assert indices("images=7,2", "target=label") == [7, 2]
    drawn = indices("images=random", "count=4", "target=label")
    assert drawn == indices("images=random", "count=4", "target=label") == sorted(set(drawn))
    assert drawn != indices("images=random", "count=4", "seed=1", "target=label")


def test_neighbors_are_those_of_a_direct_search(outputs: Path) -> None:
    trained = load_run(find_trained("last", outputs))
    explainer = Explainer(trained, accelerator="cpu")
    data = trained.datamodule
    data.setup("fit")
    images = data.pixels("train", torch.arange(5))
    found = find_neighbors(explainer, images, 4, own=torch.arange(5))
    features = explainer.features(data.pixels("train", torch.arange(54))).double()
    assert features.shape == (54, 16)
    features /= features.norm(dim=1, keepdim=True)
    similar = features[:5] @ features.T
    similar[torch.arange(5), torch.arange(5)] = -1
    wanted = similar.topk(4)
    torch.testing.assert_close(found.similarities.double(), wanted.values, atol=1e-5, rtol=0)
    assert found.labels.tolist() == data.targets("train")[found.positions].tolist()
    torch.testing.assert_close(found.pixels[0, 0], data.pixels("train", found.positions[0, :1])[0])
    assert find_neighbors(explainer, images, 1).positions.flatten().tolist() == [0, 1, 2, 3, 4]  # themselves
    assert find_neighbors(explainer, images, 9, max_images=3).positions.shape == (5, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["target=dog"], r"^target=dog: no such class; .*"),
        (["images=best"], r"^images=best: unknown images \(expected worst, first, random, or numbers"),
        (["images=3,worst"], r"^images=worst: unknown images"),
        (["images=99"], r"^images=99: no such image of the test split \(expected 0 to 14, got 99\)"),
        (["method=attention_rollout"], r"^method=attention_rollout: ResNet has no attention layers"),
        (["layer=body.99"], r"^layer=body.99: no layer with a feature map; choose from "),
        (["input=nowhere.png"], r"^input=nowhere.png: no such file"),
        (["input=empty"], r"^input=empty: no image files there"),
        (["input=empty", "target=label"], r"^target=label: files have no labels"),
        (["method=cam"], r"^method=cam: "),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_wrong_requests_are_refused_in_one_line(command: Command, words: list[str], message: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(InputError, match=message) as caught:
        command("run=last", *words)
    assert "\n" not in str(caught.value)
    assert not Path("out").exists()


def test_other_tasks_are_refused(tmp_path: Path) -> None:
    words = ["task=autoencoder", "model=autoencoder", "trainer.max_epochs=1", "trainer.limit_train_batches=1"]
    forked_command.run(*words, "logger=none", cwd=tmp_path)
    with pytest.raises(InputError, match=r"Autoencoder\w* on inputs of shape .* does not classify images"):
        main(read_options(Options, ["run=last", f"outputs={tmp_path / 'outputs'}"]))


def test_sheet_shows_image_map_and_overlay() -> None:
    image = np.full((3, 4, 4), 80, np.uint8)
    values = np.zeros((4, 4), np.float32)
    values[1, 2] = 1
    mixed = overlay(image.transpose(1, 2, 0), values)
    assert mixed[0, 0].tolist() == [80, 80, 80]
    assert mixed[1, 2, 0] > 150
    row = Explained(image, values, ["ant → bee (97 %)", "no. 3"], [Tile(image, "ant\n0.98")], is_wrong=True)
    sheet = explanation_sheet([row, row], title="Grad-CAM", meaning="bright: here")
    taller = explanation_sheet([row] * 3, title="Grad-CAM", meaning="bright: here")
    assert sheet.width == taller.width
    assert sheet.height < taller.height
    with pytest.raises(ValueError, match="no explained images"):
        explanation_sheet([], title="", meaning="")
    two_channels = Explained(np.zeros((2, 4, 4), np.uint8), values, ["ant"])
    assert explanation_sheet([two_channels], title="t", meaning="m").height < sheet.height


def test_probabilities_are_not_rounded_to_certainty() -> None:
    assert [percent(one) for one in (0.0, 0.001, 0.97, 0.9951, 1.0)] == [
        "0 %",
        "< 1 %",
        "97 %",
        "> 99 %",
        "100 %",
    ]
