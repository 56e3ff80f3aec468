"""The page about a data set: duplicates, damaged files, tables of values, labels that are likely wrong."""

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked_command
import numpy as np
import pytest
from chromium import needs_chromium
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits
from test_browser import page, show  # noqa: F401 - a fixture

from project.config.command_options import read_options
from project.config.resolvers import register_resolvers
from project.errors import DataError, InputError
from project.reporting.dataset.duplicates import (
    MAX_DISTANCE,
    SIMILARITIES,
    WIDE_SIMILARITIES,
    count_bits,
    find_duplicates,
    least_similarity,
    similar_hashes,
)
from project.reporting.dataset.label_issues import find_issues
from project.reporting.dataset.options import Options, main


@pytest.fixture(autouse=True, scope="module")
def _fresh_process() -> Iterator[None]:
    register_resolvers()
    of_other_tests, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    config = HydraConfig.instance().cfg
    yield
    GlobalHydra.instance().hydra = of_other_tests
    HydraConfig.instance().cfg = config


def report(*words: str) -> Path:
    """Run the command; return its folder."""
    options = read_options(Options, words)
    main(options)
    assert options.output is not None
    return options.output


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def draw_photo(seed: int, side: int = 48) -> Image.Image:
    """Return a smooth random image, unlike any of another seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 30 training and 10 test images, with planted duplicates and damaged files."""
    root = tmp_path_factory.mktemp("data") / "it's <b>photos</b>"
    for split, count in (("train", 30), ("test", 10)):
        for label, name in enumerate(("cät & dog", "<i>bee</i>")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                draw_photo(1000 * label + number + 100 * (split == "test")).save(folder / f"{number}.png")
    cats, bees = (root / "train" / name for name in ("cät & dog", "<i>bee</i>"))
    shutil.copy(cats / "3.png", root / "test" / "cät & dog" / "exact.png")
    shutil.copy(cats / "4.png", bees / "wrong.png")
    draw_photo(5).save(cats / "coded.jpg", quality=60)
    draw_photo(6).resize((40, 40)).save(cats / "resized.png")
    ImageEnhance.Brightness(draw_photo(7)).enhance(0.8).save(cats / "dark.png")
    (cats / "broken (1).png").write_bytes((cats / "3.png").read_bytes()[:200])
    (bees / "text.jpg").write_text("no image")
    return root


@pytest.fixture(scope="module")
def photo_report(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    register_resolvers()
    return report(
        "data=image_folder", f"data.path={photos}", f"output={tmp_path_factory.mktemp('report') / 'a b'}"
    )


def test_planted_duplicates_are_found_with_their_labels(photo_report: Path) -> None:
    found = {
        frozenset(Path(row[key]).name for key in ("file", "other_file")): row
        for row in read(photo_report / "duplicates.csv")
    }
    kinds = {names: (row["kind"], row["labels_differ"]) for names, row in found.items()}
    assert kinds == {
        frozenset({"3.png", "exact.png"}): ("exact", "false"),
        frozenset({"4.png", "wrong.png"}): ("exact", "true"),
        frozenset({"5.png", "coded.jpg"}): ("near", "false"),
        frozenset({"6.png", "resized.png"}): ("near", "false"),
        frozenset({"7.png", "dark.png"}): ("near", "false"),
    }
    assert found[frozenset({"3.png", "exact.png"})]["other_split"] == "test"


def test_damaged_files_are_counted_and_others_described(photo_report: Path) -> None:
    reasons = {Path(row["file"]).name: row["reason"] for row in read(photo_report / "unreadable.csv")}
    assert set(reasons) == {"broken (1).png", "text.jpg"}
    assert all(reason.startswith("is damaged or not an image (") for reason in reasons.values())
    text = (photo_report / "data.html").read_text()
    assert "2 files cannot be read" in text
    assert "<b>photos" not in text
    assert "&lt;i&gt;bee&lt;/i&gt;" in text
    counts = {(row["split"], row["class"]): int(row["count"]) for row in read(photo_report / "classes.csv")}
    assert counts["test", "cät & dog"] == 11
    assert sum(count for (split, _), count in counts.items() if split != "test") == 66


@needs_chromium
def test_page_fits_the_screen(photo_report: Path, page: Any) -> None:  # noqa: F811
    show(page, photo_report / "data.html")
    widths = page.locator("img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert len(widths) == 24 + 2 * 5
    assert min(widths) > 0
    assert page.get_by_text("different labels").first.is_visible()
    page.emulate_media(color_scheme="dark")
    assert page.locator("#samples .tile").first.is_visible()


def test_hash_index_finds_the_pairs_of_a_search_of_all_pairs() -> None:
    draws = np.random.default_rng(1)
    hashes = draws.integers(0, 2**63, 300, dtype=np.uint64)
    for row in range(1, 300, 2):  # neighbors that differ in 0 to 12 bits
        hashes[row] = hashes[row - 1]
        for bit in draws.choice(64, row // 2 % 13, replace=False):
            hashes[row] ^= np.uint64(1) << np.uint64(bit)
    found = sorted(
        (min(pair), max(pair), int(distance))
        for firsts, seconds, distances in similar_hashes(hashes)
        for *pair, distance in zip(firsts.tolist(), seconds.tolist(), distances, strict=True)
    )
    expected = [
        (one, other, distance)
        for one in range(300)
        for other in range(one + 1, 300)
        if (distance := int(hashes[one] ^ hashes[other]).bit_count()) <= MAX_DISTANCE
    ]
    assert found == expected
    assert len({distance for *_, distance in found}) == MAX_DISTANCE + 1
    assert count_bits(hashes).tolist() == [int(word).bit_count() for word in hashes]


def test_equal_images_are_paired_with_the_first() -> None:
    gray = np.full((4, 16, 16), 7, np.uint8)  # thumbnails of one gray correlate with nothing
    pairs = find_duplicates([b"a", b"b", b"a", b"a"], np.zeros(4, np.uint64), gray).pairs
    assert [pair[:3] for pair in pairs] == [(0, 2, True), (0, 3, True)]
    assert find_duplicates([b"a", b"b"], np.zeros(0, np.uint64), gray).pairs == []


@pytest.mark.parametrize("copies", [0, 20, 100, 2000])
@pytest.mark.parametrize("distinct", [0, 1, 100, 10_000, 1_000_000])
@pytest.mark.parametrize("dimension", [4, 7, 12])
def test_similar_images_are_no_copies(distinct: int, copies: int, dimension: int) -> None:
    """Distinct pairs are a power of the distance; copies lie within a distance of 0.002."""
    distances = 1 - np.array([*WIDE_SIMILARITIES, *SIMILARITIES])
    false = distinct * (distances / distances[0]) ** (dimension / 2)
    counts = np.floor(false + copies * np.minimum(distances / 0.002, 1)).astype(int).tolist()
    counts, wide = counts[len(WIDE_SIMILARITIES) :], counts[: len(WIDE_SIMILARITIES)]
    least = least_similarity(wide, counts, num_images=10_000)
    if least > 1:  # so many that some are as similar as copies
        assert false[-1] > 0.2 * counts[-1]
        return
    place = int(np.argmin(np.abs(1 - least - distances)))
    assert false[place] <= 0.25 * counts[place - len(WIDE_SIMILARITIES)] + 1
    if distinct <= 1:
        assert least == SIMILARITIES[0]
    if copies >= 100 and dimension >= 7:  # nearly all copies are kept
        assert least <= 0.99375


def test_near_duplicates_among_similar_images_are_told_by_their_similarity(
    tmp_path: Path, capsys: Any
) -> None:
    digits = load_digits()
    for number in range(700):
        pixels = (digits.images[number] * (255 / 16)).astype(np.uint8)
        image = Image.fromarray(pixels).resize((28, 28), Image.Resampling.BICUBIC)
        folder = tmp_path / "digits" / "train" / str(digits.target[number])
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number}.png")
        if number < 20:
            ImageEnhance.Brightness(image).enhance(0.9).save(folder / f"{number}-copy.png")
    folder = report("data=image_folder", f"data.path={tmp_path / 'digits'}", f"output={tmp_path / 'report'}")
    pairs = [
        {Path(row[key]).stem.split("-")[0] for key in ("file", "other_file")}
        for row in read(folder / "duplicates.csv")
    ]
    right = sum(len(pair) == 1 for pair in pairs)
    assert right >= 19
    assert right >= 0.75 * len(pairs)
    remark = "Near duplicates are those that correlate by 0.99"
    assert remark in capsys.readouterr().out
    assert remark in (folder / "data.html").read_text()


def test_issues_are_those_of_confident_learning() -> None:
    """Compare with the definition: off-diagonal images by thresholds of mean self-confidence."""
    cleanlab = pytest.importorskip("cleanlab.filter")
    draws = np.random.default_rng(0)
    true = draws.integers(0, 4, 800)
    logits = draws.normal(size=(800, 4)) + 5 * np.eye(4)[true]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = true.copy()
    planted = draws.choice(800, 40, replace=False)
    labels[planted] = (true[planted] + 1) % 4
    is_issue, scores = find_issues(labels, probabilities)
    assert np.array_equal(scores, probabilities[np.arange(800), labels])
    expected = cleanlab.find_label_issues(labels, probabilities, n_jobs=1)
    assert np.array_equal(is_issue, expected)
    assert is_issue[planted].mean() > 0.9
    assert np.isin(np.argsort(scores)[:40], planted).mean() > 0.85


def test_values_of_a_table_are_described(tmp_path: Path) -> None:
    folder = report("data=diabetes", "task=regression", f"output={tmp_path / 'out'}")
    text = (folder / "data.html").read_text()
    assert "442 rows" in text
    assert "Distribution of progression" in text
    assert "cholesterol" in text or "body" in text
    assert [file.name for file in folder.iterdir()] == ["data.html"]


def test_labels_of_a_table_of_images_are_counted(image_folder: Path, tmp_path: Path) -> None:
    files = sorted(image_folder.glob("train/*/*.jpg"))
    lines = [f"{file},{index % 2},{index % 3 // 2}" for index, file in enumerate(files)]
    (tmp_path / "photos.csv").write_text("\n".join(["image,cat,dog", *lines]))
    words = [f"data.table={tmp_path / 'photos.csv'}", "data.label_columns=[cat,dog]", "task=multilabel"]
    folder = report("data=csv", *words, f"output={tmp_path / 'out'}", "near=false")
    rows = read(folder / "classes.csv")
    assert sum(int(row["count"]) for row in rows if row["class"] == "cat") == 30


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=image_folder"], r"data\.path: not given"),
        (["data=image_folder", "data.path=nowhere"], r"data\.path=nowhere: no such folder"),
        (["data=digits", "data.val_size=-1"], r"data\.val_size=-1"),
        (["data=digit_masks", "task=segmentation"], r"has no classes or values per image"),
        (["run=nowhere"], r"run=nowhere: no such folder"),
        (["run=last", "task=multilabel"], r"task=multilabel: the run has its own"),
    ],
)
def test_wrong_input_is_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises((InputError, DataError), match=message) as error:
        report(*words, f"output={tmp_path / 'out'}", f"outputs={tmp_path}")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_folds_of_a_sweep_find_planted_labels(tmp_path: Path) -> None:
    pytest.importorskip("cleanlab")
    root = tmp_path / "photos"
    for label, name in enumerate(("dark", "bright")):
        for split, count in (("train", 40), ("test", 6)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number).integers(0, 60, (8, 8, 3)) + 180 * label
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number}.png")
    wrong = {"7.png", "19.png", "30.png"}
    for name in wrong:
        (root / "train" / "dark" / name).rename(root / "train" / "bright" / f"wrong{name}")
    sweep = train_folds(root, tmp_path)
    folder = report(f"run={sweep}", f"output={tmp_path / 'out'}", "accelerator=cpu")
    rows = read(folder / "labels.csv")
    assert sum(row["split"] == "train" for row in rows) == 80
    assert {Path(row["file"]).name for row in rows[:3]} == {f"wrong{name}" for name in wrong}
    assert {(row["label"], row["suggested"]) for row in rows[:3]} == {("bright", "dark")}
    assert "80 of 80 training images" in (folder / "data.html").read_text()


def train_folds(root: Path, outputs: Path) -> Path:
    """Train two folds, as jobs of a sweep."""
    words = ["-m", "folds=2", "data=image_folder", f"data.path={root}", "model=mlp", "trainer.max_epochs=4"]
    words += ["trainer.accelerator=cpu", "data.batch_size=8", "optim.lr=0.01", "logger=none"]
    words += [f"paths.outputs={outputs / 'runs'}", f"hydra.sweep.dir={outputs / 'sweep'}"]
    forked_command.run(*words, "hydra.launcher.jobs=1", cwd=outputs)
    return outputs / "sweep"
