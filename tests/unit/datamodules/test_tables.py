"""Tables of images and of features, multi-label digits, and balanced sampling."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_diabetes
from small_training import make_trainer
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors

from project.datamodules.diabetes import Diabetes
from project.datamodules.loading.batch_order import BalancedOrder
from project.datamodules.multi_mnist import place
from project.datamodules.storage import tables
from project.datamodules.table_images import TableImages
from project.datamodules.tabular import Tabular
from project.errors import DataError, InputError
from project.modules.losses import BinaryCrossEntropy
from project.modules.multilabel import MultilabelClassifier
from project.runtime.process import silence_libraries
from project.training.ddp.launch import run_ranks

HEAD = ["image", "cat", "dog", "kind", "weight", "part"]


def rows_of(count: int = 60) -> list[list[Any]]:
    parts = ["train", "train", "Valid", "test"]
    return [
        [f"img/{i}.png", i % 2, int(i % 3 == 0), f"k{i % 3}", 0.5 * i, parts[i % 4]] for i in range(count)
    ]


def write(folder: Path, rows: list[list[Any]], head: list[str] = HEAD) -> str:
    """Write a table, and an image of gray level i for row i."""
    (folder / "img").mkdir(exist_ok=True)
    for i in range(len(rows)):
        Image.fromarray(np.full((8, 8), i, dtype=np.uint8)).save(folder / "img" / f"{i}.png")
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return str(folder / "table.csv")


def images(table: str, label_columns: Any, num_classes: int, **options: Any) -> TableImages:
    base = {"input_shape": (1, 8, 8), "batch_size": 8, "val_size": 6} | options
    return TableImages(table, label_columns, num_classes=num_classes, **base)


@pytest.mark.parametrize(
    ("columns", "target_type", "num_classes", "expected"),
    [
        ("kind", "class", 3, torch.arange(60) % 3),
        (
            ["cat", "dog"],
            "multilabel",
            2,
            torch.stack([torch.arange(60) % 2, (torch.arange(60) % 3 == 0).long()], 1).float(),
        ),
        ("weight", "real", 1, 0.5 * torch.arange(60.0)[:, None]),
        (["weight", "cat"], "real", 2, torch.stack([0.5 * torch.arange(60.0), torch.arange(60) % 2], 1)),
    ],
)
def test_every_image_has_the_targets_of_its_row(
    tmp_path: Path, columns: Any, target_type: Any, num_classes: int, expected: Tensor
) -> None:
    data = images(write(tmp_path, rows_of()), columns, num_classes, target_type=target_type)
    data.setup("fit")
    data.setup("test")
    assert [data.count(split) for split in ("train", "val", "test")] == [42, 6, 12]
    seen = []
    for split in ("train", "val", "test"):
        rows = data.pixels(split, torch.arange(data.count(split)))[:, 0, 0, 0].long()  # the gray level
        assert torch.equal(data.targets(split), expected[rows])
        seen += rows.tolist()
    assert sorted(seen) == list(range(60))
    _, targets = next(iter(data.train_dataloader()))
    assert targets.shape == expected[:8].shape


@pytest.mark.parametrize("module", ["images", "features"])
def test_a_split_column_decides_about_splits(tmp_path: Path, module: str) -> None:
    table = write(tmp_path, rows_of())
    options = {"num_classes": 3, "split_column": "part", "batch_size": 8}
    data: Any = (
        TableImages(table, "kind", input_shape=(1, 8, 8), **options)
        if module == "images"
        else Tabular(table, "kind", ["weight", "cat"], input_shape=(2,), **options)
    )
    data.setup("fit")
    data.setup("test")
    assert data.has_validation
    assert [data.count(split) for split in ("train", "val", "test")] == [30, 15, 15]
    assert torch.equal(data.targets("test"), torch.arange(3, 60, 4) % 3)


def test_the_kind_of_targets_follows_from_the_columns(tmp_path: Path) -> None:
    table = tables.read_table(write(tmp_path, rows_of()))
    cases = {("kind",): "class", ("cat", "dog"): "multilabel", ("weight", "cat"): "real"}
    for columns, kind in cases.items():
        assert tables.target_kind(table, columns, None) == kind
    assert tables.target_kind(table, ["weight"], "real") == "real"


def test_numeric_classes_are_sorted_by_value(tmp_path: Path) -> None:
    table = write(tmp_path, [[str(i % 12)] for i in range(24)], ["class"])
    assert tables.classes_of(tables.read_table(table), "class", None) == [str(i) for i in range(12)]


def test_delimiters_and_a_byte_order_mark_are_accepted(tmp_path: Path) -> None:
    for delimiter in ",;\t":
        file = tmp_path / f"{ord(delimiter)}.csv"
        file.write_text(f"\ufeffa{delimiter} b \n1{delimiter}2\n\n", encoding="utf-8")
        assert tables.read_table(str(file)).columns == {"a": ["1"], "b": ["2"]}


def change(row: int, column: str, value: Any) -> list[list[Any]]:
    rows = rows_of()
    rows[row][HEAD.index(column)] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            rows_of(),
            {"label_columns": "kin"},
            r"^data\.label_columns=kin: no such column .*mean kind\?",
        ),
        (
            rows_of(),
            {"image_column": "files"},
            r"^data\.image_column=files: no such column .*expected",
        ),
        (rows_of(), {"split_column": "x"}, r"^data\.split_column=x: no such column"),
        (
            change(4, "weight", "heavy"),
            {"label_columns": "weight", "target_type": "real"},
            r"^data\.label_columns=weight: row 5 of .*expected a finite number, got 'heavy'\)",
        ),
        (
            change(4, "weight", "nan"),
            {"label_columns": "weight", "target_type": "real"},
            r"^data\.label_columns=weight: row 5 of .*expected a finite number, got 'nan'\)",
        ),
        (
            change(4, "cat", 2),
            {"label_columns": ["cat", "dog"], "target_type": "multilabel"},
            r"^data\.label_columns=cat: row 5 of .*expected 0 or 1, got '2'\)",
        ),
        (
            rows_of(),
            {"label_columns": ["kind"], "target_type": "multilabel"},
            r"^data\.label_columns=\[kind\]: 1 column .*set task=classification",
        ),
        (
            rows_of(),
            {"label_columns": ["cat", "dog"], "target_type": "class"},
            r"^data\.label_columns=\[cat,dog\]: 2 columns .*set task=multilabel",
        ),
        (
            change(3, "kind", "rare"),  # a test row
            {"split_column": "part"},
            r"^data\.label_columns=kind: class rare of the test rows has no training rows",
        ),
        (change(3, "kind", ""), {}, r"^data\.label_columns=kind: row 4 of .* has no class"),
        (
            change(5, "part", "holdout"),
            {"split_column": "part"},
            r"^data\.split_column=part: row 6 of .*expected train, val or test, got 'holdout'\)",
        ),
        (
            change(0, "image", "img/none.png"),
            {},
            r"^data\.image_column=image: 1 of \d+ \w+ images are missing \(row 1: .*none\.png\)",
        ),
        ([*rows_of(), ["short"]], {}, r"^data\.table=.*: row 61 has 1 cell \(expected 6"),
        ([], {}, r"^data\.table=.*: has no rows below its header"),
        (
            [[*row[:4], row[0][4:-4] + ".25", row[5]] for row in rows_of()],
            {"label_columns": "weight", "target_type": "class"},
            r"^data\.label_columns=weight: 60 different numbers .*; set task=regression$",
        ),
        (
            rows_of(),
            {"label_columns": "image"},
            r"^data\.label_columns=\[image\]: image holds the image files",
        ),
    ],
)
def test_wrong_tables_are_refused_in_one_line(
    tmp_path: Path, rows: list[list[Any]], options: dict[str, Any], message: str
) -> None:
    chosen = {"label_columns": "kind", "image_column": "image", "split_column": None, "target_type": None}
    chosen |= options
    with pytest.raises((InputError, DataError), match=message) as refused:
        load(write(tmp_path, rows), **chosen)
    assert "\n" not in str(refused.value)


def load(file: str, **options: Any) -> None:
    """Load a table as a run does: derived keys first, then the splits."""
    tables.image_files(file, None, options["image_column"])
    count = tables.num_outputs(
        file, *(options[key] for key in ("label_columns", "split_column", "target_type"))
    )
    data = images(file, num_classes=count, **options)
    data.setup("fit")
    data.setup("test")


def test_arrays_are_tables(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    x, y = draws.normal(size=(40, 3)).astype(np.float32), draws.integers(0, 3, 40)
    flags, price = draws.random((40, 2)) > 0.5, draws.normal(size=40)
    np.savez(tmp_path / "t.npz", x=x, y=y, flags=flags, price=price)
    features = ["x_0", "x_1", "x_2"]
    for columns, kind, outputs, expected in (
        ("y", "class", 3, torch.from_numpy(y)),
        (["flags_0", "flags_1"], "multilabel", 2, torch.from_numpy(flags).float()),
        ("price", "real", 1, torch.from_numpy(price).float()[:, None]),
    ):
        assert tables.num_outputs(str(tmp_path / "t.npz"), columns, None, kind) == outputs
        options = {"input_shape": [3], "num_classes": outputs, "val_size": 4, "batch_size": 8}
        data = Tabular(str(tmp_path / "t.npz"), columns, features, target_type=kind, **options)
        loaded = [data.load_inputs(split) for split in ("train", "test")]
        targets = torch.cat([part.labels for part in loaded])
        inputs = torch.cat([part.sample(torch.arange(len(part.labels))) for part in loaded])
        order = [int((torch.from_numpy(x) == row).all(1).nonzero()) for row in inputs]
        assert sorted(order) == list(range(40))
        assert torch.equal(targets, expected[order])
    np.save(tmp_path / "t.npy", x)
    assert list(tables.read_table(str(tmp_path / "t.npy")).columns) == ["column_0", "column_1", "column_2"]
    fields = np.array([("a", 1.5), ("b", 2.5)], dtype=[("kind", "U1"), ("size", float)])
    np.save(tmp_path / "s.npy", fields)
    assert tables.read_table(str(tmp_path / "s.npy")).columns == {"kind": ["a", "b"], "size": ["1.5", "2.5"]}


def test_wrong_arrays_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("a,b\n1,2\n")
    np.savez(tmp_path / "unequal.npz", x=np.zeros((3, 2)), y=np.zeros(4))
    np.savez(tmp_path / "deep.npz", x=np.zeros((3, 2, 2)))
    np.save(tmp_path / "empty.npy", np.zeros((0, 2)))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name, message in (
        ("text.npz", r"text\.npz: is not a table \(.*\); write it with numpy"),
        ("unequal.npz", r"array y is not a column \(expected .* got float64 of shape \[4\]\); correct it"),
        ("deep.npz", r"array x is not a column"),
        ("empty.npy", r"array column is not a column"),
        ("objects.npy", r"objects\.npy: is not a table \(Object arrays cannot be loaded"),
    ):
        with pytest.raises(DataError, match=message) as refused:
            tables.read_table(str(tmp_path / name))
        assert "\n" not in str(refused.value)


def test_files_that_are_no_tables_are_refused_with_the_key_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    for name, problem in {
        "none.csv": "does not exist",
        "empty.csv": "is empty",
        "image.png": "is not a text file",
    }.items():
        for key in ("data.table", "input"):
            file = str(tmp_path / name)
            with pytest.raises(DataError) as refused:
                tables.read_table(file, key)
            assert str(refused.value).startswith(f"{key}={file}: {problem}")
            assert str(refused.value).count(name) == 1


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([f"{i}.5" for i in range(20)], True),
        ([f"{i / 7:.6f}" for i in range(20)], True),
        ([str(i) for i in range(20)], False),  # numbered classes, each with one row
        ([f"{i}.0" for i in range(20)], False),
        ([str(i % 10 + 0.5) for i in range(60)], False),  # few classes
        ([f"k{i}" for i in range(20)], False),
        (["0.5", "1.5"], False),
    ],
)
def test_real_values_are_told_from_numbered_classes(cells: list[str], expected: bool) -> None:
    assert tables.looks_continuous(cells) is expected


def test_names_with_commas_are_quoted() -> None:
    table = tables.Table("t.csv", {"a": ["1"], "b, c": ["2"]})
    with pytest.raises(InputError, match=r"expected one of a, 'b, c'\)"):
        table.column("data.label_columns", "zzz")


def test_a_table_too_small_for_a_test_says_how_many_rows_it_needs() -> None:
    table = tables.Table("t.csv", {"a": ["1"]})
    with pytest.raises(
        InputError, match=r"^data\.test_size=0\.2: does not fit the 1 row of t\.csv .*least 3 rows"
    ):
        tables.num_test_rows(table, 1, 0.2)
    assert tables.num_test_rows(table, 3, 0.2) == 1


def test_features_are_standardized_by_the_training_split(tmp_path: Path) -> None:
    table = write(tmp_path, rows_of())
    data = Tabular(table, "kind", ["weight", "cat"], input_shape=(2,), num_classes=3, val_size=6)
    data.setup("fit")
    train = data.subset("train")
    features = train.images.sample(train.rows).numpy()
    inputs = torch.cat([inputs for inputs, _ in data.evaluation_loader("train")]).numpy()
    np.testing.assert_allclose(inputs, (features - features.mean(0)) / features.std(0), rtol=1e-4, atol=1e-6)
    assert set(features[:, 0] * 2) <= set(range(60))
    with pytest.raises(InputError, match=r"data\.feature_columns=\[kind,cat\]: kind is also a label"):
        tables.feature_columns(table, ["kind", "cat"], "kind", None)


def test_the_diabetes_table_is_the_one_of_scikit_learn() -> None:
    data = Diabetes()
    known = load_diabetes(scaled=False)
    data.setup("fit")
    data.setup("test")
    assert [data.count(split) for split in ("train", "val", "test")] == [319, 35, 88]
    assert sorted(torch.cat([data.targets(split) for split in ("train", "val", "test")])[:, 0].tolist()) == (
        sorted(known.target.tolist())
    )
    columns = [
        tables.numbers_of(tables.read_table(str(data.table)), "", name) for name in data.feature_columns
    ]
    np.testing.assert_allclose(np.array(columns).T, known.data)


def test_digits_are_placed_where_the_offsets_say() -> None:
    digits = torch.arange(1, 3, dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 28, 28)
    images = place(digits, torch.tensor([0, 8]), torch.tensor([3, 0]))
    expected = torch.zeros(2, 1, 36, 36, dtype=torch.uint8)
    expected[0, 0, 0:28, 3:31] = 1
    expected[1, 0, 8:36, 0:28] = 2
    assert torch.equal(images, expected)


LABELS = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)


def test_balanced_sampling_draws_all_classes_equally_often() -> None:
    order = BalancedOrder(LABELS, 50, seed=1)
    drawn = []
    for epoch in range(20):
        order.set_epoch(epoch)
        drawn.append(torch.cat(list(order)))
    assert len({tuple(epoch.tolist()) for epoch in drawn}) == 20  # reseeded
    rows = torch.cat(drawn)
    shares = LABELS[rows].bincount() / len(rows)
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), atol=0.02, rtol=0)  # 6 standard errors
    of_rare = rows[LABELS[rows] == 2].bincount(minlength=1000)[990:] / (LABELS[rows] == 2).sum()
    torch.testing.assert_close(of_rare, torch.full((10,), 0.1), atol=0.02, rtol=0)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_draws_of_balanced_sampling(world_size: int) -> None:
    one = BalancedOrder(LABELS, 40, seed=3)
    ranks = [BalancedOrder(LABELS, 40, seed=3, rank=r, world_size=world_size) for r in range(world_size)]
    for order in (one, *ranks):
        order.set_epoch(2)
    for batch, *parts in zip(one, *ranks, strict=True):  # each position of a batch is on one rank
        assert torch.equal(torch.stack(parts, 1).flatten(), batch)
    resumed = BalancedOrder(LABELS, 40, seed=3)
    resumed.resume_at(2, 7)
    one.set_epoch(2)
    assert all(map(torch.equal, resumed, list(one)[7:]))


def labels_network() -> MultilabelClassifier:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.3), nn.Linear(16, 2))
    optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    return MultilabelClassifier(layers, BinaryCrossEntropy(2, "balanced"), optimizer, num_labels=2)


class SaveAt(L.Callback):
    """Saves a checkpoint after one batch of the second epoch."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == 2:
            trainer.save_checkpoint(self.file)


def test_a_run_on_a_table_resumes_within_an_epoch_bit_for_bit(tmp_path: Path) -> None:
    table, file = write(tmp_path, rows_of()), tmp_path / "within.ckpt"
    results = []
    for callbacks, start in (([SaveAt(file)], None), ([], file)):
        module, data = labels_network(), images(table, ["cat", "dog"], 2)
        trainer = make_trainer(tmp_path, callbacks, max_epochs=3, enable_checkpointing=False)
        torch.manual_seed(5 if start is None else 6)
        trainer.fit(module, data, ckpt_path=start, weights_only=True)
        results.append((module.state_dict(), {k: float(v) for k, v in trainer.callback_metrics.items()}))
    (first, metrics), (second, others) = results
    assert metrics == others
    assert metrics.keys() >= {"val/map", "val/f1", "val/loss", "train/loss"}
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_ranks_measure_what_one_process_does(tmp_path: Path) -> None:
    table = write(tmp_path, rows_of())
    run_ranks(lambda: _test_on(table, tmp_path / "ranks.pt", devices=2, strategy="ddp"), 2)
    _test_on(table, tmp_path / "one.pt")
    two, one = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("ranks", "one"))
    for name in ("test/map", "test/f1", "test/loss"):
        torch.testing.assert_close(two[name], one[name])


def _test_on(table: str, file: Path, **options: Any) -> None:
    silence_libraries()
    data = images(table, ["cat", "dog"], 2, eval_batch_size=3)
    trainer = make_trainer(file.parent, enable_checkpointing=False, **options)
    trainer.test(labels_network(), data, verbose=False)
    gathered = gather_all_tensors(torch.zeros(1)) if options else [torch.zeros(1)]
    assert len(gathered) == trainer.world_size
    if trainer.is_global_zero:
        torch.save({name: value.clone() for name, value in trainer.callback_metrics.items()}, file)
