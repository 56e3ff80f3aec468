"""Image folders of users: splits, image modes, sizes, damaged files."""

import logging
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from project.config.resolvers import folder_shape
from project.datamodules.image_folder import ImageFolder
from project.datamodules.loading.image_decoder import decode_image
from project.datamodules.loading.loader import FileImages, MemoryImages
from project.datamodules.storage import class_folders
from project.datamodules.storage.class_folders import survey
from project.errors import DataError, InputError


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        image = Image.new("RGB", (8, 4), "white")
        image.paste("black", (0, 0, 4, 4))  # the left half, which the tag says is the top
        exif = Image.Exif()
        exif[0x0112] = 6  # orientation: to be turned by 90° clockwise
        image.save(tmp_path / name / "1.png", exif=exif)
    shape = tuple(folder_shape(str(tmp_path), None, None))
    assert shape == (3, 8, 4)
    pixels = decode_image(tmp_path / "ant" / "1.png", shape, may_scale=False)
    assert pixels[:, :4].max() == 0
    assert pixels[:, 4:].min() == 255


def test_an_image_folder_uses_its_own_test_folder(image_folder: Path) -> None:
    data = ImageFolder(str(image_folder), input_shape=(3, 12, 10), num_classes=3, val_size=6)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert [data.count(split) for split in ("train", "val", "test")] == [54, 6, 15]
    assert data.class_names == ["ant", "bee", "cat"]
    for images, labels in data.test_dataloader():
        assert torch.equal(images.mean(dim=(2, 3)).argmax(dim=1), labels)


def test_an_image_folder_without_a_test_folder_is_split_in_three(image_folder: Path) -> None:
    data = ImageFolder(
        str(image_folder / "train"), input_shape=(3, 12, 10), num_classes=3, val_size=0.25, test_size=12
    )
    data.setup("fit")
    data.setup("test")
    assert [data.count(split) for split in ("train", "val", "test")] == [36, 12, 12]
    train, test = (
        {image.numpy().tobytes() for image in data._subsets[split].images.images}
        for split in ("train", "test")
    )
    assert (len(train), len(test)) == (48, 12)
    assert not train & test


def test_a_run_resumes_only_with_the_same_images(image_folder: Path, tmp_path: Path) -> None:
    def set_up(folder: Path) -> ImageFolder:
        data = ImageFolder(str(folder), input_shape=(3, 12, 10), num_classes=3, val_size=0.25, test_size=12)
        data.setup("fit")
        return data

    state = set_up(image_folder / "train").state_dict()
    shutil.copytree(image_folder / "train", tmp_path / "moved")
    set_up(tmp_path / "moved").load_state_dict(state)
    one = next((tmp_path / "moved" / "ant").iterdir())
    shutil.copy(one, one.with_name(f"another{one.suffix}"))  # all splits are cut anew
    changed = set_up(tmp_path / "moved")
    with pytest.raises(InputError, match=r"moved: images were added, removed or renamed since the run began"):
        changed.load_state_dict(state)
    changed.load_state_dict({name: value for name, value in state.items() if name != "images"})
    changed.allow_changed_images = True
    changed.load_state_dict(state)


def test_image_files_may_be_deleted_once_decoded(image_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(image_folder / "train", tmp_path / "gone")
    cuts = [
        ImageFolder(str(folder), input_shape=(3, 12, 10), num_classes=3, val_size=0.25, test_size=12)
        for _ in range(2)
    ]
    for data in cuts:
        data.setup("fit")
    state, files = cuts[0].state_dict(), cuts[0].files("val")
    shutil.rmtree(folder)
    assert cuts[1].state_dict() == state  # as a checkpoint asks for
    assert cuts[1].files("val") == files


def test_folds_and_a_validation_folder_exclude_each_other(image_folder: Path, tmp_path: Path) -> None:
    options = {"input_shape": (3, 12, 10), "num_classes": 3, "folds": 4, "fold": 1}
    cut = ImageFolder(str(image_folder), **options)
    cut.setup("fit")
    assert [cut.count(split) for split in ("train", "val")] == [45, 15]
    for split in ("train", "val"):
        shutil.copytree(image_folder / "train", tmp_path / split)
    with pytest.raises(InputError, match=r"data\.folds=4: data=image_folder has its own validation split"):
        ImageFolder(str(tmp_path), **options).setup("fit")


def test_streamed_images_equal_those_in_memory(image_folder: Path) -> None:
    options = {"input_shape": (3, 12, 10), "num_classes": 3, "mean": [0.5], "std": [0.5]}
    memory = ImageFolder(str(image_folder), **options)
    streamed = ImageFolder(str(image_folder), **options, memory_budget_mb=0, num_workers=2)
    for data in (memory, streamed):
        data.setup("fit")
    assert isinstance(memory._subsets["train"].images, MemoryImages)
    assert isinstance(streamed._subsets["train"].images, FileImages)
    loaders = memory.train_dataloader(), streamed.train_dataloader()
    for epoch in range(2):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        for (images, labels), (same, same_labels) in zip(*loaders, strict=True):
            assert torch.equal(images, same)
            assert torch.equal(labels, same_labels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_mode_and_size_are_read(tmp_path: Path, mode: str, channels: int) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((9, 7), 257 * 200, dtype=np.uint16))
    else:
        image = Image.new("RGB", (7, 9), (200, 200, 200)).convert(mode)
    file = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    image.save(file)
    pixels = decode_image(file, (channels, 5, 4), may_scale=True)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (channels, 5, 4))
    assert pixels.float().mean() == pytest.approx(255 if mode == "1" else 200, abs=60 if mode == "1" else 4)


def test_a_transparent_image_lies_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (decode_image(tmp_path / "clear.png", (3, 4, 4), may_scale=False) == 255).all()


def broken_folder(image_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(image_folder, tmp_path / "broken")
    victim = tmp_path / "broken" / "train" / "bee" / "3.jpg"
    victim.write_bytes(victim.read_bytes()[:200])
    return tmp_path / "broken"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_in_one_line(image_folder: Path, tmp_path: Path, workers: int) -> None:
    folder = broken_folder(image_folder, tmp_path)
    options = {"memory_budget_mb": 0, "num_workers": workers, "mean": [0.5], "std": [0.5]}
    data = ImageFolder(str(folder), input_shape=(3, 12, 10), num_classes=3, **options)
    data.setup("fit")
    if workers:
        data._subsets["train"].images.workers = workers  # few files are decoded without any
    with pytest.raises(InputError, match=r"^[^\n]*bee/3\.jpg is damaged or not an image[^\n]*\Z"):
        list(data.train_dataloader())
    ended = weakref.ref(data._subsets["train"].images)
    del data
    assert not workers or ended() is None  # and with it the processes


def test_a_damaged_image_is_named_in_one_line_whatever_its_name(tmp_path: Path) -> None:
    file = tmp_path / "two\nlines.png"
    file.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^[^\n]*/two\\nlines\.png is damaged or not an image[^\n]*\Z"):
        decode_image(file, (1, 2, 2), may_scale=True)


def test_wrong_folders_are_reported(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.num_classes=4: .* has 3 class folders"):
        ImageFolder(str(image_folder), input_shape=(3, 12, 10), num_classes=4).prepare_data()
    with pytest.raises(InputError, match=r"data\.resize=null: .* 12×10 pixels, others 8×8"):
        ImageFolder(str(image_folder), input_shape=(3, 8, 8), num_classes=3).setup("fit")
    with pytest.raises(InputError, match=r"no such folder"):
        ImageFolder(str(tmp_path / "gone"), input_shape=(3, 8, 8), num_classes=3).prepare_data()
    with pytest.raises(InputError, match=r"at least 2 are needed"):
        ImageFolder(str(tmp_path), input_shape=(3, 8, 8), num_classes=3).prepare_data()


def palette(colors: list[int]) -> Image.Image:
    image = Image.new("P", (8, 6))
    image.putpalette(colors)
    return image


HEADERS: dict[str, tuple[bool, Callable[[], Image.Image], str]] = {
    "bits": (True, lambda: Image.new("1", (8, 6)), "png"),
    "gray": (True, lambda: Image.new("L", (8, 6)), "jpg"),
    "gray with alpha": (True, lambda: Image.new("LA", (8, 6)), "png"),
    "16 bits": (True, lambda: Image.new("I;16", (8, 6)), "png"),
    "32 bits": (True, lambda: Image.new("I", (8, 6)), "tif"),
    "floats": (True, lambda: Image.new("F", (8, 6)), "tif"),
    "gray palette": (True, lambda: palette([0, 0, 0, 90, 90, 90]), "png"),
    "gray palette of TIFF": (True, lambda: palette([0, 0, 0, 90, 90, 90]), "tif"),
    "palette": (False, lambda: palette([0, 0, 0, 90, 90, 91]), "png"),
    "palette of TIFF": (False, lambda: palette([0, 0, 0, 90, 90, 91]), "tif"),
    "palette of BMP": (False, lambda: palette([0, 0, 0, 90, 90, 91]), "bmp"),
    "color": (False, lambda: Image.new("RGB", (8, 6)), "jpg"),
    "color with alpha": (False, lambda: Image.new("RGBA", (8, 6)), "png"),
    "inks": (False, lambda: Image.new("CMYK", (8, 6)), "jpg"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_distinguish_gray_from_color(tmp_path: Path, name: str) -> None:
    gray, make, suffix = HEADERS[name]
    for label in ("ant", "bee"):
        (tmp_path / label).mkdir()
        make().save(tmp_path / label / f"1.{suffix}")
    found = survey(tmp_path)
    assert (found.gray, found.color) == ((2, 0) if gray else (0, 2))
    assert list(found.sizes) == [(6, 8)]


def folder_of(root: Path, *images: Image.Image, suffix: str = "png") -> Path:
    """Write a folder of two classes; the images belong to the first class, in this order."""
    for label in ("ant", "bee"):
        (root / label).mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(root / "ant" / f"{number:04}.{suffix}")
    shutil.copy(root / "ant" / f"0000.{suffix}", root / "bee")
    return root


@pytest.mark.parametrize("first", [0, 1])
def test_one_gray_image_does_not_make_a_folder_gray(
    tmp_path: Path, first: int, caplog: pytest.LogCaptureFixture
) -> None:
    images = [Image.new("L", (8, 6), 90), Image.new("RGB", (8, 6), (200, 10, 30))]
    folder = folder_of(tmp_path / "photos", *(images[first], images[1 - first]))
    shape = tuple(folder_shape(str(folder), None, None))
    assert shape == (3, 6, 8)
    assert tuple(folder_shape(str(folder), None, True)) == (1, 6, 8)
    options = {"num_classes": 2, "test_size": "all", "mean": [0.5], "std": [0.5]}
    data = ImageFolder(str(folder), input_shape=shape, grayscale=None, **options)
    with caplog.at_level(logging.INFO):
        data.prepare_data()
        data.prepare_data()
    logged = [record.getMessage() for record in caplog.records]
    gray = 1 if first else 2  # the first one lies in both classes
    assert logged == [
        f"{gray} of 3 images examined in {folder} are gray, the others in color; all are read as color "
        "(data.grayscale)"
    ]
    data.setup("test")
    pixels = data._subsets["test"].images.images
    assert max(tuple(image[:, 0, 0].tolist()) for image in pixels) == (200, 10, 30)
    assert (90, 90, 90) in {tuple(image[:, 0, 0].tolist()) for image in pixels}


def test_gray_images_alone_stay_gray_without_a_log_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(tmp_path / "photos", Image.new("L", (8, 6)), palette([0, 0, 0, 9, 9, 9]))
    assert tuple(folder_shape(str(folder), None, None)) == (1, 6, 8)
    assert tuple(folder_shape(str(folder), 4, False)) == (3, 4, 4)
    with caplog.at_level(logging.INFO):
        ImageFolder(str(folder), input_shape=(1, 6, 8), num_classes=2, grayscale=None).prepare_data()
    assert not caplog.records


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_sizes_are_those_of_upright_images(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = folder_of(tmp_path / "photos", Image.new("RGB", (8, 6)), suffix=suffix)
    for label in ("ant", "bee"):
        Image.new("RGB", (6, 8)).save(folder / label / f"on its side.{suffix}", exif=exif)
    assert list(survey(folder).sizes) == [(6, 8)]
    decode_image(folder / "ant" / f"on its side.{suffix}", (3, 6, 8), may_scale=False)


def test_several_sizes_are_refused_by_the_commonest_and_a_file_of_each(tmp_path: Path) -> None:
    images = [Image.new("RGB", (9, 9)), *[Image.new("RGB", (8, 6))] * 4]
    folder = folder_of(tmp_path / "photos", *images)
    with pytest.raises(
        InputError,
        match=r"data\.resize=null: images of 2 sizes \(6×8 as .*ant/0001\.png, 9×9 as .*ant/0000\.png\); set",
    ):
        folder_shape(str(folder), None, None)
    assert tuple(folder_shape(str(folder), [5, 7], None)) == (3, 5, 7)


def test_of_many_files_a_sample_decides_and_damaged_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "photos", *[Image.new("L", (8, 6))] * 60)
    (folder / "ant" / "0000.png").write_bytes(b"no image")
    assert (survey(folder).gray, survey(folder).color) == (60, 0)
    monkeypatch.setattr(class_folders, "MAX_HEADERS", 50)
    class_folders._survey.cache_clear()
    first = survey(folder)
    class_folders._survey.cache_clear()
    assert survey(folder) == first
    assert first.gray + first.color in (49, 50)
    Image.new("RGB", (8, 6)).save(folder / "ant" / "9999.png")
    monkeypatch.setattr(class_folders, "MAX_HEADERS", 100)
    assert survey(folder).color == 1  # one that was added counts


def test_a_folder_without_one_image_that_can_be_read_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", Image.new("L", (8, 6)))
    for label in ("ant", "bee"):
        (folder / label / "0000.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"ant/0000\.png is damaged or not an image"):
        survey(folder)
