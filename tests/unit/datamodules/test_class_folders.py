"""Class folders: names of split folders, skipped files, and checks of headers before a run."""

import logging
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Compose
from PIL import Image
from torch import Tensor

from project.config.validation import find_problems, image_folders
from project.datamodules.image_base import ImageDataModule
from project.datamodules.image_folder import ImageFolder
from project.datamodules.storage import class_folders
from project.datamodules.storage.image_files import SkippedFile, summarize_skipped
from project.errors import DataError, InputError
from project.inference.predict.command import find_files

OPTIONS = {"input_shape": (3, 6, 5), "num_classes": 2, "val_size": 0, "mean": [0.5], "std": [0.5]}


def draw(file: Path, kind: str = "png", shape: tuple[int, int] = (6, 5)) -> Path:
    """Write an image whose pixels differ from those of every other file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    seed = [ord(character) for character in str(file)]
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file


def fill(root: Path, **counts: int) -> Path:
    """Write two classes below each split folder, with the given number of images per class."""
    for folder, count in counts.items():
        for name in ("ant", "bee"):
            for number in range(count):
                draw(root / folder / name / f"{number}.png")
    return root


def found_in(root: Path) -> dict[str, int]:
    data = ImageFolder(str(root), **OPTIONS, test_size=1)
    data.setup("fit")
    data.setup("test")
    return {split: data.count(split) for split in ("train", "val", "test") if data.count(split)}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "", "testing"),
        ("Train", "", "Testing"),
        ("TRAIN", "VAL", "TEST"),
        ("training", "validation", "test"),
        ("training_set", "", "test_set"),
        ("train", "dev", "cifar_test"),
        ("train_images", "val_images", "test_images"),
        ("images_train", "images_valid", "images_test"),
        ("TrainImages", "ValImages", "TestImages"),
        ("train2017", "val2017", "test2017"),
        ("seg_train/seg_train", "", "seg_test/seg_test"),
        ("train/train", "", "test/Test"),
        ("my_training", "", "test"),
    ],
)
def test_split_folders_are_found_by_name(tmp_path: Path, train: str, val: str, test: str) -> None:
    expected = {"train": 10, "val": 4, "test": 6} if val else {"train": 10, "test": 6}
    fill(tmp_path, **{train: 5, test: 3} | ({val: 2} if val else {}))
    assert found_in(tmp_path) == expected
    data = ImageFolder(str(tmp_path), **OPTIONS)
    data.setup("test")
    assert data.class_names == ["ant", "bee"]
    assert {Path(file).relative_to(tmp_path / test).parts[0] for file in data.files("test")} == {"ant", "bee"}


def test_classes_may_have_such_words_in_their_names(tmp_path: Path) -> None:
    for name in ("bullet_train", "crash test dummy", "dev board", "steam_train"):
        draw(tmp_path / name / "1.png")
    assert class_folders.class_names(tmp_path) == [
        "bullet_train",
        "crash test dummy",
        "dev board",
        "steam_train",
    ]


def test_a_folder_test_beside_classes_is_none(tmp_path: Path) -> None:
    for name in ("ant", "bee", "Test/ant", "Test/bee", "my_val/ant"):
        for number in range(3):
            draw(tmp_path / name / f"{number}.png")
    assert class_folders.class_names(tmp_path) == ["ant", "bee"]
    assert found_in(tmp_path) == {"train": 6, "val": 3, "test": 6}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train", "test", "testing"), "test and testing name the same split, test; rename or remove"),
        (("train", "Train"), "Train and train name the same split, train"),
        (("train", "a_test", "b_test"), "a_test and b_test name the same split, test"),
        (("cifar_train", "docs"), "cifar_train may be the train split or a class; rename it to train"),
    ],
)
def test_ambiguous_split_folders_are_rejected(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    fill(tmp_path, **dict.fromkeys(names, 1))
    with pytest.raises(DataError, match=rf"data\.path=.*: {message}"):
        class_folders.class_names(tmp_path)


def test_unused_folders_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    fill(tmp_path, train=3, test=2, old=2, test_masks=1)
    data = ImageFolder(str(tmp_path), **OPTIONS)
    data.setup("fit")
    data.setup("test")
    logged = [message for message in caplog.messages if "not used" in message]
    assert logged == [f"not used in {tmp_path}, because it has folders of splits: old, test_masks"]


def oddities(root: Path) -> set[str]:
    """Write two classes with images and other entries; return the paths of the images."""
    ant, bee = root / "ant", root / "bee"
    images = {
        draw(ant / "1.png"),
        draw(ant / "photo.jfif", "jpeg"),
        draw(ant / "photo.avif", "avif"),
        draw(ant / "photo.jp2", "jpeg2000"),
        draw(ant / "none"),
        draw(ant / "wrong.dat", "jpeg"),
        draw(ant / "deep" / "er" / "1.webp", "webp"),
        draw(bee / "1.png"),
    }
    store = root.parent / "store"
    draw(store / "linked.png")
    draw(store / "more" / "1.png")
    (ant / "linked.png").symlink_to(store / "linked.png")
    (ant / "more").symlink_to(store / "more")
    images |= {ant / "linked.png", ant / "more" / "1.png"}
    (store / "more" / "up").symlink_to(store)
    (ant / "again.png").symlink_to("1.png")
    (ant / "linked.png.png").symlink_to(store / "linked.png")
    (ant / "up").symlink_to("..")
    (ant / "beside").symlink_to("../bee")
    (ant / "self").symlink_to("self")
    (ant / "gone.png").symlink_to("nowhere.png")
    for hidden in (".hidden/1.png", "@eaDir/1.png", "__MACOSX/._1.png", ".1.png", "deep/.git/1.png"):
        draw(ant / hidden)
    for name, data in {
        "Thumbs.db": b"\xd0\xcf",
        ".DS_Store": b"\0",
        "notes.txt": b"cats",
        "nothing": b"",
    }.items():
        (ant / name).write_bytes(data)
    os.mkfifo(ant / "pipe.png")
    os.mkfifo(ant / "pipe")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(bee / "socket.png"))
    (bee / "null.png").symlink_to("/dev/null")
    return set(map(str, images))


def test_training_and_prediction_find_the_same_images_each_once(tmp_path: Path) -> None:
    images = oddities(tmp_path / "photos")
    found = class_folders.find_images(tmp_path / "photos", tmp_path / "photos", ["ant", "bee"])
    assert set(found.files) == images
    assert len(found.files) == len(images)
    assert [Path(file).name for file, label in zip(found.files, found.labels, strict=True) if label] == [
        "1.png"
    ]
    assert set(find_files([str(tmp_path / "photos")])[0]) == images
    bee = f"{tmp_path}/photos/ant/../bee"
    both = find_files([str(tmp_path / "photos"), bee, f"{tmp_path}/photos/b*"])[0]
    assert sorted(both) == sorted(images)


def test_skipped_files_are_counted_and_the_first_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    oddities(tmp_path)
    (tmp_path / "README").write_text("classes")
    reasons = {
        os.path.relpath(file, tmp_path): reason
        for file, reason in class_folders.find_images(tmp_path, tmp_path, ["ant", "bee"]).skipped
    }
    assert reasons["README"] == "not in a class folder"
    assert (
        reasons["ant/pipe.png"]
        == reasons["bee/socket.png"]
        == reasons["bee/null.png"]
        == "not a regular file"
    )
    assert reasons["ant/gone.png"] == "broken link"
    assert reasons["ant/notes.txt"] == "no image, or of a kind that Pillow does not know"
    assert reasons["ant/nothing"] == "empty"
    caplog.set_level(logging.INFO)
    data = ImageFolder(str(tmp_path), **OPTIONS)
    for _ in range(2):
        data.labeled_files("train")
    (logged,) = [message for message in caplog.messages if "skipped in" in message]
    assert "README (not in a class folder), ant/gone.png (broken link)" in logged
    assert logged.endswith(f"and {len(reasons) - 3} more")
    hidden = SkippedFile("a/.b", "hidden")
    assert (
        summarize_skipped([hidden, hidden, SkippedFile("a/c", "empty")], "a")
        == "c (empty), .b (hidden), .b (hidden)"
    )


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", ".ipynb_checkpoints", "$RECYCLE.BIN", "lost+found"])
def test_system_folders_are_not_classes(tmp_path: Path, name: str) -> None:
    fill(tmp_path, train=2, test=2)
    for folder in (tmp_path, tmp_path / "train", tmp_path / "test"):
        draw(folder / name / "1.png")
    assert found_in(tmp_path) == {"train": 4, "test": 4}
    assert class_folders.find_layout(tmp_path).unused == ()


NAMES = ['=cow, "x"\t', "a\nb", "café", "図"]


def test_class_names_are_printed_unchanged(tmp_path: Path) -> None:
    for name in NAMES:
        for number in range(3):
            draw(tmp_path / name / f"{number}.png")
    data = ImageFolder(str(tmp_path), **OPTIONS | {"num_classes": 4}, test_size=4)
    assert data.class_names == ['=cow, "x"\\t', "a\\nb", "café", "図"]
    data.setup("fit")
    assert data.labeled_files("train")[1].bincount().tolist() == [2, 2, 2, 2]
    given = ImageFolder(str(tmp_path), **OPTIONS | {"num_classes": 4}, classes=list(reversed(NAMES)))
    assert given.class_names == list(reversed(data.class_names))
    given.load_state_dict({"class_names": list(reversed(NAMES)), "mean": [0.5] * 3, "std": [0.5] * 3})
    draw(tmp_path / "a\\nb" / "1.png")
    with pytest.raises(DataError, match=r"two class folders have the same printable name, a\\nb; rename one"):
        class_folders.class_names(tmp_path)


def test_names_of_classes_are_the_same_in_every_locale(tmp_path: Path) -> None:
    draw(tmp_path / "café" / "1.png")
    draw(tmp_path / "bee" / "1.png")
    code = f"""if True:
        import sys
        from pathlib import Path
        from project.datamodules.storage.class_folders import class_names
        from project.runtime.process import escape_unencodable
        escape_unencodable()
        assert sys.stdout.encoding.lower() in ("ascii", "ansi_x3.4-1968"), sys.stdout.encoding
        (names := class_names(Path({str(tmp_path)!r})))
        print([ord(character) for character in names[1]], names[1])
    """
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | plain, capture_output=True, check=True
    )
    assert done.stdout.decode() == f"{[ord(character) for character in 'café']} caf\\xe9\n"


def problems(composer: Compose, root: Path, *more: str) -> list[str]:
    """Return the errors that checks before a run report for an image folder."""
    image_folders._read_headers.cache_clear()
    options = ("model=mlp", "data.test_size=2", "data.batch_size=2", "data.image_cache=null", *more)
    return list(find_problems(composer("data=image_folder", f"data.path={root}", *options)))


def spoil(root: Path, count: int) -> None:
    for number in range(count):
        (root / "test" / "bee" / f"bad {number}.png").write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (lambda root: spoil(root, 1), ["test/bee/bad 0.png is damaged or not an image"]),
        (
            lambda root: spoil(root, 12),
            [*(["is damaged or not an image"] * 5), "data.path: … and 7 more, 12 in all"],
        ),
        (lambda root: draw(root / "test" / "cow" / "1.png"), ["class .*test/cow has no training images"]),
        (
            lambda root: (shutil.rmtree(root / "test"), draw(root / "test" / "1.png")),
            [r"no image files in .*test/<class> \(skipped: 1.png \(not in a class folder\)\)"],
        ),
        (
            lambda root: (spoil(root, 1), (root / "train" / "ant" / "0.png").write_bytes(b"no image")),
            ["train/ant/0.png is damaged", "test/bee/bad 0.png is damaged"],
        ),
    ],
)
def test_the_test_split_is_checked_before_a_run(
    composer: Compose, tmp_path: Path, change, lines: list[str]
) -> None:
    fill(tmp_path, train=3, test=2)
    assert problems(composer, tmp_path) == []
    change(tmp_path)
    with pytest.raises(DataError, match="(?s)" + r"[^\n]*\n[^\n]*".join(lines)) as raised:
        problems(composer, tmp_path)
    assert len(str(raised.value).splitlines()) == len(lines)


def test_test_images_of_another_size_are_named_before_a_run(composer: Compose, tmp_path: Path) -> None:
    fill(tmp_path, train=3, test=2)
    draw(tmp_path / "test" / "bee" / "large.png", shape=(7, 8))
    with pytest.raises(InputError, match=r"data\.resize=null: .*bee/large\.png has 7×8 pixels, others 6×5"):
        problems(composer, tmp_path)
    assert problems(composer, tmp_path, "data.resize=4") == []


def test_rotated_tiff_images_report_their_decoded_size(composer: Compose, tmp_path: Path) -> None:
    fill(tmp_path, train=3, test=2)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, size in (("upright", (6, 5)), ("other", (5, 6))):
        Image.new("RGB", size).save(tmp_path / "test" / "bee" / f"{name}.tif", exif=exif)
    with pytest.raises(
        InputError, match=r"^data\.resize=null: \S*/other\.tif has 5×6 pixels, others 6×5[^\n]*$"
    ):
        problems(composer, tmp_path)


def test_headers_are_read_again_only_when_files_change(
    composer: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folders, "FEW_FILES", 0)
    root, kept = fill(tmp_path / "photos", train=3, test=2), f"data.image_cache={tmp_path}/kept"
    looked: list[str] = []
    read = image_folders.read_headers
    monkeypatch.setattr(
        image_folders,
        "read_headers",
        lambda files: [
            looked.append(file) or header for file, header in zip(files, read(files), strict=True)
        ],
    )
    for expected in (10, 10):
        assert problems(composer, root, kept) == []
        assert len(looked) == expected
    (root / "test" / "bee" / "0.png").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(DataError, match=r"bee/0\.png is damaged"):
            problems(composer, root, kept)
    draw(root / "test" / "bee" / "0.png")
    assert problems(composer, root, kept) == []


class Untested(ImageDataModule):
    """Data set with a damaged test split."""

    def load_split(self, split) -> tuple[Tensor, Tensor] | None:
        if split == "test":
            raise DataError("the test file is damaged")
        return None if split == "val" else (torch.zeros(8, 1, 2, 2, dtype=torch.uint8), torch.arange(8) % 2)


def test_damaged_test_images_stop_a_run_before_training(tmp_path: Path) -> None:
    data = Untested(name="mine", input_shape=(1, 2, 2), num_classes=2, val_size=2)
    data.setup("fit")
    data.trainer = SimpleNamespace()
    with pytest.raises(DataError, match="the test file is damaged"):
        data.setup("fit")
    fill(tmp_path, train=2, test=2)
    for file in ("train/ant/0.png", "test/ant/0.png"):
        (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:70])  # its header is right
    files = ImageFolder(str(tmp_path), **OPTIONS)
    files.trainer = SimpleNamespace()
    with pytest.raises(DataError, match=r"train/ant/0\.png is damaged.*\n.*test/ant/0\.png is damaged"):
        files.setup("fit")
