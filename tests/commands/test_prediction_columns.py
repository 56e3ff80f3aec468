"""Predictions of other tasks than image classification: of a split by `evaluate`, of files by `predict`."""

import csv
import json
from pathlib import Path
from typing import Any

import forked_command
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, mean_absolute_error, r2_score

from project.config.command_options import read_options
from project.config.resolvers import register_resolvers
from project.errors import DataError, InputError
from project.inference.evaluate import options as evaluate
from project.inference.predict import command as predict
from project.inference.run_config import check_request
from project.inference.serve import options as serve
from project.runs.run_folder import RunFolder

SETTINGS = ["model=mlp", "logger=none", "trainer.max_epochs=5", "optim.lr=0.03", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a table of points, one of images, and runs trained on classes, labels and real values."""
    folder = tmp_path_factory.mktemp("tables")
    draws = np.random.default_rng(0)
    points = [
        (x, y, "big" if x + y > 0 else "small") for x, y in draws.normal(size=(200, 2)).round(4).tolist()
    ]
    write_table(folder / "points.csv", ["x", "y", "kind"], points)
    rows = []
    for number, labels in enumerate(draws.integers(0, 2, (60, 2)).tolist()):
        pixels = draws.integers(0, 60, (8, 8, 3)) + np.array([90 * labels[0], 0, 90 * labels[1]])
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.png")
        rows.append([f"{number:02}.png", *labels])
    write_table(folder / "images.csv", ["image", "red", "blue"], rows)
    images = ["data=csv", f"data.table={folder}/images.csv", "data.label_columns=[red,blue]"]
    for name, words in {
        "classes": ["data=tabular", f"data.table={folder}/points.csv", "data.label_columns=kind"],
        "labels": ["task=multilabel", *images],
        "values": ["task=regression", *images],
        "progression": ["task=regression", "data=diabetes"],
    }.items():
        forked_command.run(*SETTINGS, *words, f"hydra.run.dir={folder / name}", cwd=folder)
    return folder


def write_table(file: Path, columns: list[str], rows: list[Any]) -> None:
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])


def read_columns(file: Path) -> dict[str, list[str]]:
    with file.open(newline="") as stream:
        columns, *rows = csv.reader(stream)
    return dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))


def evaluated(run: Path, split: str = "test", *words: str) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Evaluate a run; return its metrics by name, and the columns of its predictions."""
    register_resolvers()
    output = run / "evaluated"
    evaluate.main(
        read_options(evaluate.Options, [f"run={run}", f"split={split}", f"output={output}", *words])
    )
    figures = json.loads((output / "evaluation.json").read_text())["figures"]
    metrics = {name.removeprefix(f"{split}/"): one["value"] for name, one in figures.items()}
    return metrics, read_columns(output / "predictions.csv")


def predicted(run: Path, *inputs: Path) -> dict[str, list[str]]:
    """Predict files twice, the second time in place of the first output; return the columns."""
    output = run / "predicted.csv"
    for _ in range(2):
        words = [f"run={run}", f"input={','.join(map(str, inputs))}", f"output={output}"]
        predict.predict_files(read_options(predict.Options, words))
    return read_columns(output)


@pytest.mark.parametrize("split", ["test", "val"])
def test_classes_of_a_table(folder: Path, split: str) -> None:
    metrics, columns = evaluated(folder / "classes", split)
    assert list(columns) == ["index", "label", "prediction", "probability", "p(big)", "p(small)"]
    accuracy = accuracy_score(columns["label"], columns["prediction"])
    assert metrics["acc"] == pytest.approx(accuracy, abs=1e-6)
    assert len(columns["index"]) == metrics["images"]


@pytest.mark.parametrize("has_splits", [False, True])
def test_a_run_is_evaluated_on_another_table(
    folder: Path, has_splits: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    head, *rows = zip(*read_columns(folder / "points.csv").items(), strict=True)
    names, cells = head, list(zip(*rows[0], strict=True))
    only = [row for row in cells if row[2] == "small"][:30]  # one of the two classes
    columns = ["kind", "extra", names[1], names[0]]  # another order, and a column that is no feature
    others = [[kind, "text", y, x] for x, y, kind in only]
    if has_splits:
        columns, others = [*columns, "part"], [[*row, "test"] for row in others]
    write_table(folder / "shifted.csv", columns, others)
    words = ["data.split_column=part"] if has_splits else []
    metrics, tested = evaluated(folder / "classes", "test", f"data.table={folder}/shifted.csv", *words)
    assert metrics["images"] == len(only)
    assert "test/images 30" in " ".join(capsys.readouterr().out.split())  # a count, without decimals
    known = predicted(folder / "classes", folder / "points.csv")
    places = [cells.index(row) for row in only]
    expected = np.float64(known["p(big)"])[places]
    np.testing.assert_allclose(np.float64(tested["p(big)"]), expected, atol=1e-5)  # statistics of training
    assert set(tested["label"]) == {"small"}


def test_each_row_of_a_table_is_predicted(folder: Path) -> None:
    columns = predicted(folder / "classes", folder / "points.csv")
    assert columns["row"] == [str(row) for row in range(200)]
    _, tested = evaluated(folder / "classes")
    differences = np.float64(tested["p(big)"])[:, None] - np.float64(columns["p(big)"])
    assert np.abs(differences).min(axis=1).max() < 1e-5  # the tested rows are rows of the table
    kinds = read_columns(folder / "points.csv")["kind"]
    assert accuracy_score(kinds, columns["prediction"]) > 0.8  # rows in their order


def test_real_values_have_the_units_of_the_targets(folder: Path) -> None:
    metrics, columns = evaluated(folder / "progression")
    targets, values = (np.float64(columns[f"{kind}(progression)"]) for kind in ("target", "prediction"))
    assert metrics["mae"] == pytest.approx(mean_absolute_error(targets, values), rel=1e-5)
    assert metrics["r2"] == pytest.approx(r2_score(targets, values), rel=1e-4)


def test_labels_of_images(folder: Path) -> None:
    _, columns = evaluated(folder / "labels")
    assert list(columns) == ["file", "index", "labels", "prediction", "p(red)", "p(blue)"]
    table = read_columns(folder / "images.csv")
    assert columns["file"]
    for place, file in enumerate(columns["file"]):
        row = table["image"].index(Path(file).name)
        present = [name for name in ("red", "blue") if table[name][row] == "1"]
        assert columns["labels"][place] == "; ".join(present)
        likely = [name for name in ("red", "blue") if float(columns[f"p({name})"][place]) > 0.5]
        assert columns["prediction"][place] == "; ".join(likely)


@pytest.mark.parametrize("run", ["labels", "values"])
def test_image_files_are_predicted_as_in_the_evaluation(
    folder: Path, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, tested = evaluated(folder / run)
    (folder / "damaged.png").write_bytes(b"no image")
    files = [folder / Path(file).name for file in tested["file"]]
    columns = predicted(folder / run, *files, folder / "damaged.png")
    assert "damaged.png" in capsys.readouterr().err
    assert list(columns["file"]) == list(map(str, files))
    numbers = [name for name in columns if name not in ("file", "prediction")]
    assert numbers
    for name in numbers:
        np.testing.assert_allclose(np.float64(columns[name]), np.float64(tested[name]), rtol=1e-4, atol=1e-5)


def test_a_table_is_served_and_read_with_a_reason(folder: Path) -> None:
    with pytest.raises(
        InputError, match=r"ImageClassifier on inputs of shape \[2\] does not classify images"
    ):
        serve.main(read_options(serve.Options, [f"run={folder / 'classes'}"]))
    write_table(folder / "other.csv", ["x", "z"], [[1, 2]])
    with pytest.raises(InputError, match=r"^input=.*other\.csv: has no column 'y'"):
        predicted(folder / "classes", folder / "other.csv")
    write_table(folder / "cells.csv", ["x", "y"], [[1, 2], [3, "high"]])
    with pytest.raises(DataError, match=r"^input=.*cells\.csv: row 2 of column 'y' does not fit"):
        predicted(folder / "classes", folder / "cells.csv")
    with pytest.raises(DataError, match=r"no input could be predicted \(expected images, or folders of im"):
        predicted(folder / "labels", folder / "points.csv")
    for run, data, misfit in (
        ("progression", "digits", "expected real values, got one class per input"),
        ("classes", "digits", "expected rows of features, got images"),
    ):
        with pytest.raises(InputError, match=rf"^data={data}: does not fit the run's task \({misfit}\)"):
            check_request(RunFolder(folder / run), "auto", [f"data={data}"])
