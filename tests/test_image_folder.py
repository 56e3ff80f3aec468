"""Anybody's images: folders, modes, sizes, damage."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from project import resolvers
from project.datamodules.file_images import FileImages
from project.datamodules.image_decoder import decode_image
from project.datamodules.image_folder import ImageFolder
from project.datamodules.images import MemoryImages
from project.errors import InputError


def test_a_phones_photo_stands_upright(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        image = Image.new("RGB", (8, 4), "white")
        image.paste("black", (0, 0, 4, 4))  # the left half, which the tag says is the top
        exif = Image.Exif()
        exif[0x0112] = 6  # orientation: to be turned by 90° clockwise
        image.save(tmp_path / name / "1.png", exif=exif)
    shape = tuple(resolvers.folder_shape(str(tmp_path), None, None))
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


def test_an_image_folder_without_a_test_folder_is_cut_in_three(image_folder: Path) -> None:
    data = ImageFolder(
        str(image_folder / "train"), input_shape=(3, 12, 10), num_classes=3, val_size=0.25, test_size=12
    )
    data.setup("fit")
    data.setup("test")
    assert [data.count(split) for split in ("train", "val", "test")] == [36, 12, 12]
    train, test = (
        {image.numpy().tobytes() for image in data._parts[split].images.images} for split in ("train", "test")
    )
    assert (len(train), len(test)) == (48, 12)
    assert not train & test


def test_folds_are_not_cut_beside_a_validation_folder(image_folder: Path, tmp_path: Path) -> None:
    options = {"input_shape": (3, 12, 10), "num_classes": 3, "folds": 4, "fold": 1}
    cut = ImageFolder(str(image_folder), **options)
    cut.setup("fit")
    assert [cut.count(split) for split in ("train", "val")] == [45, 15]
    for split in ("train", "val"):
        shutil.copytree(image_folder / "train", tmp_path / split)
    with pytest.raises(
        InputError, match=r"data\.folds=4: data=image_folder has validation images of its own"
    ):
        ImageFolder(str(tmp_path), **options).setup("fit")


def test_streamed_images_are_those_in_memory(image_folder: Path) -> None:
    options = {"input_shape": (3, 12, 10), "num_classes": 3, "mean": [0.5], "std": [0.5]}
    memory = ImageFolder(str(image_folder), **options)
    streamed = ImageFolder(str(image_folder), **options, memory_budget_mb=0, num_workers=2)
    for data in (memory, streamed):
        data.setup("fit")
    assert isinstance(memory._parts["train"].images, MemoryImages)
    assert isinstance(streamed._parts["train"].images, FileImages)
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
        data._parts["train"].images.workers = workers  # few files are decoded without any
    with pytest.raises(InputError, match=r"bee/3\.jpg is damaged or no image") as raised:
        list(data.train_dataloader())
    assert "\n" not in str(raised.value)


def test_folder_mistakes_are_named(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.num_classes=4: .* has 3 class folders"):
        ImageFolder(str(image_folder), input_shape=(3, 12, 10), num_classes=4).prepare_data()
    with pytest.raises(InputError, match=r"data\.resize=null: .* 12×10 pixels, others 8×8"):
        ImageFolder(str(image_folder), input_shape=(3, 8, 8), num_classes=3).setup("fit")
    with pytest.raises(InputError, match=r"no such folder"):
        ImageFolder(str(tmp_path / "gone"), input_shape=(3, 8, 8), num_classes=3).prepare_data()
    with pytest.raises(InputError, match=r"at least 2 are needed"):
        ImageFolder(str(tmp_path), input_shape=(3, 8, 8), num_classes=3).prepare_data()
