"""Data sets that the library `datasets` wrote: splits, columns, class names, pixels, cache, messages."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Compose
from PIL import Image

from project.config.validation import find_problems
from project.datamodules.huggingface import HuggingFace
from project.errors import DataError, InputError

datasets = pytest.importorskip("datasets")
NAMES = ["cat", "dog", "eel"]
COUNTS = {"train": 24, "validation": 6, "test": 9}


def make(split: str, *, named: bool = True, sizes: tuple[int, ...] = (10,)):
    draws = np.random.default_rng(COUNTS[split])
    count = COUNTS[split]
    images = [
        Image.fromarray(draws.integers(0, 256, (12, sizes[row % len(sizes)], 3), dtype=np.uint8))
        for row in range(count)
    ]
    labels = [row % 3 for row in range(count)]
    if not named:
        columns = {"img": datasets.Image(), "kind": datasets.Value("string")}
        rows = {"img": images, "kind": [NAMES[label] for label in labels]}
    else:
        columns = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
        rows = {"image": images, "label": labels}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(columns))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `all` (three splits), `single` (one), `parquet` and `plain` (Parquet without class names)."""
    root = tmp_path_factory.mktemp("huggingface")
    splits = datasets.DatasetDict({split: make(split) for split in COUNTS})
    splits.save_to_disk(root / "all", num_shards={"train": 2, "validation": 1, "test": 1})
    make("train").save_to_disk(root / "single")
    for name, named in (("parquet", True), ("plain", False)):
        (root / name / "data").mkdir(parents=True)
        for split in COUNTS:
            make(split, named=named).to_parquet(root / name / "data" / f"{split}-00000-of-00001.parquet")
    make("train", sizes=(10, 14)).save_to_disk(root / "mixed")
    return root


def opened(path: Path, cache: Path | None = None, **options) -> HuggingFace:
    options = {"input_shape": (3, 12, 10), "num_classes": 3, "image_cache": cache and str(cache)} | options
    data = HuggingFace(str(path), **options)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


@pytest.mark.parametrize("name", ["all", "parquet", "plain"])
def test_images_and_labels_are_those_of_the_library(name: str, root: Path, tmp_path: Path) -> None:
    columns = {"image_column": "img", "label_column": "kind"} if name == "plain" else {}
    for _ in range(2):  # the second time from the cache
        data = opened(root / name, tmp_path / "cache", **columns)
        assert data.class_names == NAMES
        for split, written in (("train", "train"), ("val", "validation"), ("test", "test")):
            expected = make(written)
            images, rows = data._subsets[split]
            pixels = torch.stack([torch.from_numpy(np.array(image)) for image in expected["image"]])
            assert torch.equal(images.images[rows], pixels.permute(0, 3, 1, 2))
            assert torch.equal(images.labels[rows], torch.tensor(expected["label"]))
    assert data._subsets["train"].images.is_mapped


def test_a_missing_test_split_is_taken_from_the_training_images(root: Path) -> None:
    data = opened(root / "single", test_size=6, val_size=3)
    assert [data.count(split) for split in ("train", "val", "test")] == [15, 3, 6]
    assert data._subsets["test"].images.labels.bincount().tolist() == [2, 2, 2]


def test_shape_and_classes_follow_from_the_files(root: Path, composer: Compose) -> None:
    for name in ("all", "parquet"):
        config = composer("data=huggingface", f"data.path={root / name}", "data.batch_size=8")
        assert list(find_problems(config)) == []
        assert list(config.data.input_shape) == [3, 12, 10]
        assert config.data.num_classes == config.model.num_classes == 3
    config = composer(
        "data=huggingface", f"data.path={root / 'mixed'}", "data.resize=8", "data.grayscale=true"
    )
    assert list(config.data.input_shape) == [1, 8, 8]
    assert opened(root / "mixed", input_shape=(1, 8, 8), resize=8).count("test") == 5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.path=NONE"], r"data\.path=.*NONE: no data set \(expected a folder of datasets\.save_to_disk"),
        (["data.path=mixed"], r"data\.resize=null: images of 2 sizes"),
        (
            ["data.path=all", "data.image_column=imge"],
            r"data\.image_column=imge: no such column; choose from im",
        ),
        (["data.path=plain"], r"data\.label_column=null: cannot tell which column; choose from img, kind"),
    ],
)
def test_mistakes_are_one_line_before_training(
    overrides: list[str], message: str, root: Path, composer: Compose
) -> None:
    words = [word.replace("data.path=", f"data.path={root}/") for word in overrides]
    try:
        problems = list(find_problems(composer("data=huggingface", *words)))
    except DataError as error:
        problems = [str(error)]
    assert len(problems) == 1, problems
    with pytest.raises(InputError, match=message):
        raise InputError(problems[0])


def test_damaged_images_and_labels_are_one_line(tmp_path: Path) -> None:
    features = {"image": datasets.Value("binary"), "label": datasets.Value("int64")}
    good = make("train").cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"]
    rows = {"image": [good, b"no image", good], "label": [0, 1, 0]}
    data = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    data.save_to_disk(tmp_path / "damaged")
    with pytest.raises(DataError, match=r"row 1 of train in .* is damaged or not an image"):
        opened(tmp_path / "damaged", num_classes=2, test_size=1, val_size=0)
    with pytest.raises(InputError, match=r"data\.num_classes=3: .* has 2 classes; set data\.num_classes=2"):
        opened(tmp_path / "damaged")
