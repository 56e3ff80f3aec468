"""Test images among the training images: their search, and the line at the start of a training."""

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from project.datamodules.image_folder import ImageFolder
from project.datamodules.storage.exact_copies import SAMPLED_BYTES, find_copies

OPTIONS = {"input_shape": (3, 12, 10), "num_classes": 3, "mean": [0.5], "std": [0.5], "val_size": 0.2}


@pytest.mark.parametrize("width", [3, SAMPLED_BYTES, 1000])
def test_copies_are_those_of_a_search_of_all_pairs(width: int) -> None:
    draws = np.random.default_rng(0)
    first, second = (draws.integers(0, 2, (count, width), dtype=np.uint8) for count in (40, 30))
    second[[3, 9]] = first[[7, 7]]
    second[12] = first[8]
    second[12, 0] ^= 1  # equal in the middle alone, for wide rows
    rows = np.arange(5, 40)
    expected = [
        (position, other)
        for other in range(len(second))
        for position in range(len(rows))
        if np.array_equal(first[rows[position]], second[other])
        and not any(np.array_equal(first[row], second[other]) for row in rows[:position])
    ]
    assert find_copies(first, second, rows) == expected
    assert {(2, 3), (2, 9)} <= set(expected) or width == 3
    assert find_copies(first, second[:, :-1]) == []


def training(folder: Path, **options) -> ImageFolder:
    data = ImageFolder(str(folder), **OPTIONS | options)
    data.trainer = SimpleNamespace(
        global_rank=options.pop("rank", 0),
        world_size=1,
        strategy=SimpleNamespace(root_device=SimpleNamespace(type="cpu")),
    )
    data.setup("fit")
    return data


def test_a_training_with_test_images_says_so(
    image_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "photos"
    shutil.copytree(image_folder, folder)
    training(folder)
    assert "copies" not in caplog.text
    data = training(folder)
    file = data.files("train")[3]  # not a validation image
    for name in ("ant", "bee"):
        shutil.copy(file, folder / "test" / name / "it's a <copy>.jpg")
    caplog.clear()
    training(folder)
    (line,) = [line for line in caplog.messages if "copies" in line]
    assert "2 of 17 test images are also training images" in line
    assert f"test/ant/it's a <copy>.jpg (training: {file})" in line
    caplog.clear()
    training(folder, memory_budget_mb=0)  # streamed: no image is read for the comparison
    assert "copies" not in caplog.text


def test_copies_of_validation_images_are_no_training_images(
    image_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "photos"
    shutil.copytree(image_folder, folder)
    shutil.copy(training(folder).files("val")[0], folder / "test" / "ant" / "copy.jpg")
    training(folder)
    assert "copies" not in caplog.text
