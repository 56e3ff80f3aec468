"""Tests of prediction: equality with the run's test, unusual and damaged files, output formats."""

import csv
import json
import os
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import forked_command
import numpy as np
import pytest
import torch
import unusual_images
import yaml
from conftest import read_table
from PIL import Image
from written_runs import write_run

from project.config.command_options import read_options
from project.datamodules.loading import image_decoder
from project.datamodules.loading.image_decoder import decode_image
from project.datamodules.storage.image_files import SkippedFile
from project.errors import DataError, InputError
from project.inference.load_run import TrainedRun, load_run
from project.inference.options import require_accelerator
from project.inference.predict.command import Options, find_files, predict_files
from project.inference.predict.predictions import decode_files, predict
from project.inference.predict.writers import render_table
from project.modules.tta import tta_logits
from project.runs.comparison import find_trained
from project.runtime.csv_files import unescape
from project.runtime.text import columns_of, printable, shorten

CLASSES = ["ant", "bee", "cat"]
Command = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """Train a network that distinguishes red, green and blue images; return the outputs folder."""
    cwd = tmp_path_factory.mktemp("predict")
    words = ["model=mlp", "data=image_folder", f"data.path={image_folder}", "data.resize=8", "logger=none"]
    words += ["trainer.max_epochs=3", "data.batch_size=8", "tta=flip"]
    forked_command.run(*words, cwd=cwd)
    return cwd / "outputs"


def names() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


@pytest.fixture(scope="module")
def trained(outputs: Path) -> TrainedRun:
    return load_run(find_trained("last", outputs))


@pytest.fixture
def command(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> Command:
    """Return a function that runs the command in an own folder and returns standard output and error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[str, str]:
        elsewhere = any(word.startswith("outputs=") for word in words)
        predict_files(read_options(Options, [*words, *([] if elsewhere else [f"outputs={outputs}"])]))
        printed = capfd.readouterr()
        return printed.out, printed.err

    return run


def test_predictions_equal_the_runs_test(trained: TrainedRun, image_folder: Path) -> None:
    files, skipped = find_files([str(image_folder / "test")])
    assert (len(files), skipped) == (15, [])
    found = list(predict(trained, files, top_k=2, batch_size=4))
    assert [one.file for one in found] == files
    assert sum(one.class_name == Path(one.file).parent.name for one in found) == 15

    trained.datamodule.setup("test")
    with torch.inference_mode():
        logits = [
            tta_logits(trained.module, images, "flip") for images, _ in trained.datamodule.test_dataloader()
        ]
    wanted = torch.cat(logits).softmax(-1).topk(2)
    torch.testing.assert_close(
        torch.tensor([one.probabilities for one in found]), wanted.values, rtol=0, atol=1e-6
    )
    assert [one.classes for one in found] == [tuple(CLASSES[row] for row in rows) for rows in wanted.indices]
    without = next(predict(trained, files, tta="none"))
    assert without.probabilities[:2] != found[0].probabilities
    assert len(without.classes) == 3


def test_damaged_files_are_skipped_and_reported(command: Command, tmp_path: Path) -> None:
    good, bad = unusual_images.write_image_folder(Path("photos"), good=45, bad=20)
    Path("photos/.hidden").mkdir()
    for hidden in ("photos/.DS_Store", "photos/.hidden/1.jpg", "photos/._0000.jpg"):
        Path(hidden).write_bytes(b"no image")
    Path("photos/round").symlink_to(tmp_path / "photos")
    out, messages = command("input=photos", "output=found.csv", "sheet=found.png")
    assert out == ""
    with Path("found.csv").open(newline="", errors="surrogateescape") as stream:
        rows = list(csv.DictReader(stream))
    assert {unescape(row["file"]) for row in rows} == good
    assert len(rows) == 45
    named = [line.removeprefix("skipped: ") for line in messages.splitlines() if line.startswith("skipped")]
    assert len(named) == 20
    assert {line.partition(": ")[0] for line in named} == bad
    assert messages.endswith("45 predicted in found.csv and found.png, 20 skipped\n")
    with Image.open("found.png") as sheet:
        assert sheet.width > 800
    assert names() == ["found.csv", "found.png", "photos"]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 8, 10)])
def test_images_of_all_modes_are_converted(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    good, _ = unusual_images.write_image_folder(tmp_path, good=30, bad=0)
    images = {
        Path(one.file).name: one.image
        for one in decode_files(sorted(good), shape, ahead_by=1)
        if not isinstance(one, SkippedFile)
    }
    assert len(images) == len(good)
    assert {tuple(image.shape) for image in images.values()} == {shape}
    for deep in ("16 bits.png", "16 bits.tif", "32 bits.tif", "floats.tif", "gray alpha.png"):
        assert torch.equal(images[deep], images["gray.png"]), deep
    for same in ("pages.tif", "UPPER.BMP", "no suffix"):
        assert torch.equal(images[same], images["plain.ppm"]), same


@pytest.mark.parametrize("action", ["ignore", "error"])
def test_decompression_bombs_are_refused(tmp_path: Path, action: Literal["ignore", "error"]) -> None:
    file = str(tmp_path / "1.png")
    Path(file).write_bytes(unusual_images.png_of_size(10_000, 9_000))
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(DataError, match=r"data\.path: .*1\.png is too large \(.*90,?000,?000 pixels"):
            decode_image(file, (3, 8, 8), may_scale=True)
        (one,) = decode_files([file], (3, 8, 8), ahead_by=1, num_threads=1)
    assert isinstance(one, SkippedFile)
    assert one.reason.startswith("too large (")


def test_16_bit_images_are_converted_with_little_memory() -> None:
    every = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    eight = np.asarray(image_decoder._to_eight_bits(Image.fromarray(every), None))
    assert np.array_equal(eight, (every / 257).round().astype(np.uint8))
    signed = np.array([[-1, 0, 65535, 2**31 - 1]], dtype=np.int32)
    with pytest.raises(image_decoder.OutOfRangeError, match=r"values from -1 to 2\.14748e\+09 \(int32"):
        image_decoder._to_eight_bits(Image.fromarray(signed), 65535)
    deep = image_decoder._to_eight_bits(Image.fromarray(signed[:, 1:3]), 65535)
    assert np.asarray(deep).tolist() == [[0, 255]]
    large = Image.new("I;16", (1500, 1500), 257)
    tracemalloc.start()
    image_decoder._to_eight_bits(large, None)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10 * 1500**2  # bytes; a float64 copy needs at least 16 per pixel


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    sideways = Image.new("L", (20, 10))
    sideways.paste(255, (0, 0, 10, 10))  # white on the left
    note = Image.Exif()
    note[0x0112] = 6  # rotate clockwise
    sideways.save(tmp_path / "1.jpg", exif=note.tobytes())
    (one,) = decode_files([str(tmp_path / "1.jpg")], (1, 20, 10), ahead_by=1)
    assert not isinstance(one, SkippedFile)
    assert one.image[0, :9].min() > 200
    assert one.image[0, 11:].max() < 50


def test_all_formats_contain_the_same_predictions(command: Command, image_folder: Path) -> None:
    given = f"input={image_folder}/test/*/[12].jpg"
    lines = [json.loads(line) for line in command(given, "format=jsonl", "top_k=2")[0].splitlines()]
    assert [Path(line["file"]).parent.name for line in lines] == ["ant", "ant", "bee", "bee", "cat", "cat"]
    assert [line["class"] for line in lines] == ["ant", "ant", "bee", "bee", "cat", "cat"]
    assert all(line["top"][0] == {key: line[key] for key in ("class", "probability")} for line in lines)
    command(given, "output=new/folder/a.json", "top_k=2")
    assert json.loads(Path("new/folder/a.json").read_text()) == lines
    command(given, "output=a.csv", "top_k=2")
    rows = read_table(Path("a.csv"))
    assert [(row["class"], float(row["probability"])) for row in rows] == [
        (line["class"], line["probability"]) for line in lines
    ]
    assert [row["class_2"] for row in rows] == [line["top"][1]["class"] for line in lines]
    table = command(given)[0].splitlines()
    assert len(table) == 7
    assert table[0].split()[-4:] == ["class", "probability", "class_2", "class_3"]
    assert all(len(line) <= 80 for line in table)
    assert table[1].startswith("ant/1.jpg ")


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl", "a.txt", "a.png", "a.jpg", "a.webp"])
def test_only_earlier_predictions_are_replaced(command: Command, image_folder: Path, name: str) -> None:
    given = f"input={image_folder}/test/ant"
    place = "output=" + name if name[2] in "cjt" and name != "a.jpg" else "sheet=" + name
    Path(name).touch()
    command(given, place)  # nothing is lost with an empty file
    command(given, place, "top_k=1")
    Path(name).write_text("of somebody's own\n")
    with pytest.raises(InputError, match=rf"^{place}: already exists, and is not an earlier output"):
        command(given, place)
    assert Path(name).read_text() == "of somebody's own\n"


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        ("input=nowhere.jpg", InputError, r"input=nowhere\.jpg: no such file or folder"),
        ("input=*.jpeg", InputError, r"input=\*\.jpeg: no file matches"),
        ("input=empty", InputError, r"input=empty: no files there"),
        ("input=text.png", DataError, r"input=text\.png: none of 1 file could be predicted"),
        ("input=1.png output=1.xls", InputError, r"output=1\.xls: the name must end in \.csv"),
        ("input=1.png output=empty format=csv", InputError, r"output=empty: is a folder; give a file name"),
        ("input=1.png output=1.png/a.csv", InputError, r"output=1\.png/a\.csv: cannot be written"),
        ("input=1.png output=./1.png format=csv", InputError, r"output=\./1\.png: one of the images"),
        (
            "input=1.png output=a.png format=csv sheet=./a.png",
            InputError,
            r"sheet=\./a\.png: same file as output",
        ),
        ("input=1.png sheet=a.pdf", InputError, r"sheet=a\.pdf: the name must end in \.png"),
        ("input=1.png run=nowhere", InputError, r"run=nowhere: no such folder"),
        ("input=1.png outputs=empty", InputError, r"run=last: no run in empty"),
        ("input=1.png accelerator=gpu", InputError, r"accelerator=gpu: not available on this machine"),
        (
            "input=1.png tta=mirror",
            InputError,
            r"tta=mirror: choose from none, flip, flip_translate, selective, null",
        ),
        ("input=1.png views=flip", InputError, r"views=flip: `views` is now `tta`$"),
        ("inputt=1.png", InputError, r"inputt=1\.png: no key inputt; did you mean input"),
        ("output=a.csv", InputError, r"input: not given; set input=FILE"),
    ],
)
def test_wrong_input_is_reported_in_one_line_without_output(
    command: Command, words: str, kind: type[InputError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    Path("empty").mkdir()
    Path("text.png").write_text("no image")
    Path("1.png").write_bytes(unusual_images.encode(unusual_images.noise_image("RGB"), "png"))
    with pytest.raises(InputError, match=message) as found:
        command(*words.split())
    assert type(found.value) is kind
    assert len(str(found.value).splitlines()) == 1
    assert names() == ["1.png", "empty", "text.png"]


def test_missing_accelerators_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    for there in (None, "auto", "cpu", "gpu", "cuda"):
        require_accelerator(there)
    with pytest.raises(
        InputError, match=r"accelerator=mps: not available on this machine; choose auto or cpu"
    ):
        require_accelerator("mps")


def test_interruption_keeps_the_earlier_output(
    command: Command, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from project.inference.predict import predictions

    def interrupted(*arguments, **options):
        yield from list(predict(*arguments, **options))[:5]
        raise KeyboardInterrupt

    Path("a.csv").write_text("file,class,probability\nolder\n")
    monkeypatch.setattr(predictions, "predict", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        command(f"input={image_folder}/test", "output=a.csv")
    assert Path("a.csv").read_text() == "file,class,probability\nolder\n"
    assert names() == ["a.csv"]


def test_inputs_are_files_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("b/2.jpg", "b/1.jpg", "a.jpg", "a[1].jpg", "a,b.jpg", ".hidden.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert find_files(["b", "b/2.jpg", "a[1].jpg"])[0] == ["b/1.jpg", "b/2.jpg", "a[1].jpg"]
    assert find_files(["**/[12].jpg"])[0] == ["b/1.jpg", "b/2.jpg"]
    assert find_files(["~/a.jpg", ".hidden.jpg"])[0] == [f"{tmp_path}/a.jpg", ".hidden.jpg"]
    assert len(find_files(["."])[0]) == 5
    assert read_options(Options, ["input='a,b.jpg'", "input=a.jpg,b"]).input == ["a,b.jpg", "a.jpg", "b"]


def test_unreadable_folder_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shut").mkdir()
    (tmp_path / "1.jpg").touch()
    listed = os.scandir

    def scan(folder):
        if folder.endswith("shut"):
            raise PermissionError(13, "Permission denied", folder)
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scan)
    files, skipped = find_files([str(tmp_path)])
    assert files == [f"{tmp_path}/1.jpg"]
    assert skipped == [SkippedFile(f"{tmp_path}/shut", "unreadable folder (Permission denied)")]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_tables_fit_the_terminal(width: int, trained: TrainedRun) -> None:
    files = [f"photos/{'long ' * 30}{number}.jpg" for number in range(3)] + ["photos/図版/版.jpg"]
    (one,) = predict(trained, [_picture(trained)])
    kind, probabilities = type(one), (0.99999, 0.3, 0.1)
    rows = [kind(file, ("ant", "名前", "bee"), probabilities, one.image) for file in files]
    head, *lines = render_table(rows, ["ant", "bee", "名前"], top_k=3, width=width).splitlines()
    assert columns_of(head) <= width
    for file, line in zip(files, lines, strict=True):
        assert columns_of(line) <= width
        assert "0.9999" in line
        assert file[-5:] in line


def _picture(trained: TrainedRun) -> str:
    return str(next(Path(trained.config["data"]["path"]).glob("test/ant/*.jpg")))


def test_texts_are_shortened_in_the_middle_by_display_width() -> None:
    assert shorten("abc", 5, keep="ends") == "abc"
    assert shorten("abcdefgh", 5, keep="ends") == "ab…gh"
    assert columns_of(shorten("図版図版図版", 6, keep="ends")) <= 6
    assert printable("a\nb\x1b[0m" + os.fsdecode(b"\xe9") + "é") == "a\\nb\\x1b[0m\\xe9é"


def test_wrong_input_is_reported_before_importing_torch(tmp_path: Path) -> None:
    file = write_run(tmp_path / "run") / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["data"] |= {"input_shape": [1, 28, 28], "num_classes": 10}
    config |= {group: {"_target_": "a.B"} for group in ("loss", "scheduler")}
    config["trainer"] = {"_target_": "a.B", "accelerator": "cpu"}
    file.write_text(yaml.safe_dump(config))
    code = """if True:
        import sys
        from project.config.command_options import read_options
        from project.inference.predict.command import predict_files
        from project.inference.predict.command import Options
        try:
            predict_files(read_options(Options, ["run=run", "input=nowhere.jpg"]))
        except ValueError as error:
            print(error, [name for name in ("torch", "lightning", "PIL", "numpy") if name in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("input=nowhere.jpg: no such file"), done.stderr
    assert done.stdout.endswith(" []\n")
