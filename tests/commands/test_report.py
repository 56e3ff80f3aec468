"""Report pages of runs and sweeps: complete, equal to the run files, and safe to open."""

import base64
import json
import math
import re
import shlex
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from html_pages import Page, rows
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from written_runs import write_curve, write_run, write_sweep

from project.errors import InputError
from project.figures.charts import Line, downsample, draw_lines, figure_style, make_axes, to_svg
from project.inference.evaluate.metrics import Predictions, compute_metrics, fraction_intervals
from project.reporting.html import command, evaluations, images
from project.reporting.html.charts import HEIGHT, WIDTH, line_chart
from project.reporting.html.command import write_page, write_report
from project.reporting.html.images import read_event_images
from project.reporting.html.sweep_page import log_keys
from project.reporting.run_data import RunData
from project.runs.comparison import best_line, compare
from project.runs.intervals import wilson
from project.runs.sweep_jobs import Job, Ledger, config_flags

GIT = {"commit": "0123456789abcdef0123456789abcdef01234567", "changed": True}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&lt;"


def picture(shade: int = 0) -> bytes:
    """Return a PNG of one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">2I5B", 1, 1, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes([0, shade]))) + chunk(b"IEND", b"")
    )


def checked_page(folder: Path, **options: Any) -> Page:
    """Write and parse the report of a folder, and check properties that hold for every page."""
    file = write_report(str(folder), options.get("output"), options.get("compare"), folder)
    text = file.read_text()
    page = Page(text)
    nodes = page.everything()
    scripts = [node for node in nodes if node.tag == "script"]
    assert len(scripts) == 1
    assert not [node for node in nodes for name in node.attributes if name.startswith("on")]
    assert {node.tag for node in nodes}.isdisjoint({"link", "iframe", "object", "embed", "base", "form"})
    for node in nodes:
        for name in ("src", "href", "srcset", "data", "action"):
            address = node.attributes.get(name) or ""
            assert re.match(r"data:image/png;base64,|#|(?![\w+.-]*:|//)", address), address
        if node.tag == "img":
            assert node.attributes["alt"]
    assert "url(" not in text
    assert not [node for node in page.root.all("th") if not node.attributes.get("scope")]
    identifiers = [node.attributes["id"] for node in nodes if "id" in node.attributes]
    assert len(set(identifiers)) == len(identifiers)
    anchors = [node.attributes["href"] or "" for node in page.root.all("nav")[0].all("a")]
    assert {anchor.removeprefix("#") for anchor in anchors} <= set(identifiers)
    return page


@pytest.fixture
def run(tmp_path: Path) -> Path:
    metrics = {"val/acc": 0.9, "test/acc": 0.875, "test/loss": 0.4321, "test/images": 400.0}
    run = write_run(
        tmp_path / "experiment" / "run",
        *("model=cnn", "optim.lr=0.05", "data.num_classes=3"),
        acc=0.9,
        metrics=metrics,
        git=GIT,
        duration_s=83.0,
        weights="best",
    )
    write_curve(run, 0.5, 0.9, 0.8)
    (run / "train.log").write_text(
        "[2026-01-31 09:30:00,000][INFO][project.train]    model  CNN3x3, 1,234 parameters\nbye\n"
    )
    return run


def cards(page: Page) -> dict[str, str]:
    return {
        card.all("span", "label")[0].text: card.all("strong")[0].text
        for card in page.root.all("div", "card")
        if card.all("span", "label")
    }


def test_a_page_shows_the_numbers_of_the_run(run: Path) -> None:
    page = checked_page(run)
    assert cards(page) == {
        "test/acc": "0.8750",
        "val/acc": "0.9000",
        "test/loss": "0.4321",
        "epochs": "3",
        "duration": "1 min 23 s",
        "parameters": "1,234",
    }
    low, _ = wilson(0.875, 400)
    lead = page.root.all("p", "lead")[0].text
    assert "CNN3x3 with 1,234 parameters, trained on Digits with SGD (learning rate 0.05)" in lead
    assert "for 3 epochs in 1 min 23 s." in lead
    assert f"Test accuracy 0.8750 on 400 images (95 % interval {low:.4f} to" in lead
    assert 0.0162 < 0.875 - low < 0.0405
    assert page.titles() == ["Curves", "Configuration", "How to reproduce", "Environment", "Log"]
    charts = page.section("Curves").all("svg", "chart")
    assert [chart.all("title")[0].text.partition(":")[0] for chart in charts] == ["Accuracy", "Loss"]
    assert "best, epoch 2" in charts[0].text
    commands = "\n".join(node.text for node in page.section("How to reproduce").all("code"))
    assert f"git checkout {GIT['commit']}" in commands
    assert "python scripts/train.py model=cnn optim.lr=0.05 data.num_classes=3" in commands
    assert f"evaluate.py run={run}" in commands
    assert "uncommitted changes" in page.section("How to reproduce").text
    assert "lr 0.05" in page.section("Configuration").text


def test_a_command_can_be_copied_into_a_shell(tmp_path: Path) -> None:
    overrides = ["model=mlp", "optim.betas=[0.9, 0.99]", "+note=it's; rm -rf $HOME", "name=a b"]
    run = write_run(tmp_path / "run")
    (run / ".hydra" / "overrides.yaml").write_text(json.dumps([*overrides, "ckpt_path=x.ckpt"]))
    page = checked_page(run)
    command = next(
        line
        for node in page.section("How to reproduce").all("code")
        for line in "".join(node.texts).splitlines()
        if "uv run" in line
    )
    assert shlex.split(command) == ["uv", "run", "python", "scripts/train.py", *overrides]


def test_an_evaluation_is_shown_with_its_pictures(run: Path) -> None:
    place = run / "evaluation" / "test"
    place.mkdir(parents=True)
    (place / "confusion_matrix.png").write_bytes(picture())
    (place / "damaged.png").write_bytes(b"no picture")
    bounded = {"value": 0.8731, "low": 0.81, "high": 0.92}
    found = {
        "figures": {"accuracy": bounded, "loss": {"value": 0.4}},
        "classes": [{"class": "cat", "images": 7, "f1": bounded}],
        "split": "test",
    }
    (place / "evaluation.json").write_text(json.dumps(found))
    (run / "evaluation" / "damaged.json").write_text("{")
    page = checked_page(run)
    figures, classes = page.section("Evaluation").all("table")
    assert rows(figures) == [
        {"metric": "accuracy", "value": "0.8731", "95 % interval": "0.8100 to 0.9200"},
        {"metric": "loss", "value": "0.4000", "95 % interval": ""},
    ]
    interval = {"F1, 95 % interval": "0.8100 to 0.9200"}
    assert rows(classes) == [{"class": "cat", "images": "7", "F1": "0.8731"} | interval]
    (image,) = page.section("Images").all("img")
    assert base64.b64decode((image.attributes["src"] or "").partition(",")[2]) == picture()
    assert "Damaged (evaluation/test/damaged.png)" in page.section("Images").text


def test_one_accuracy_has_one_interval(run: Path) -> None:
    place = run / "evaluation" / "test"
    place.mkdir(parents=True)
    # An earlier version recorded other intervals.
    figures = {
        "accuracy": {"value": 0.875, "low": 0.8123, "high": 0.9321},
        "loss": {"value": 0.4, "low": 0.3, "high": 0.5},
    }
    found = {"figures": figures, "split": "test", "images": 400}
    before = checked_page(run).root.all("div", "main")[0].all("span", "dim")[0].text
    (place / "evaluation.json").write_text(json.dumps(found))
    page = checked_page(run)
    bounds = binomtest(350, 400).proportion_ci(method="wilson")
    interval = f"{bounds.low:.4f} to {bounds.high:.4f}"
    (card,) = page.root.all("div", "main")
    assert card.all("span", "dim")[0].text == before == f"{interval}, 400 images"
    assert f"95 % interval {interval}" in page.root.all("p", "lead")[0].text
    shown = [row["95 % interval"] for row in rows(page.section("Evaluation").all("table")[0])]
    assert shown == [interval, "0.3000 to 0.5000"]


def test_all_metrics_of_any_task_are_shown(tmp_path: Path) -> None:
    metrics = {
        f"{split}/{kind}": number / 7
        for number, (split, kind) in enumerate(
            (split, kind)
            for split in ("val", "test")
            for kind in ("mae", "loss", "iou_0", "iou_1", "psnr", "r2")
        )
    } | {"my metric": 12.5, "test/images": 88.0, "val/best_mae": 0.1}
    run = write_run(tmp_path / "run", metrics=metrics, monitor="val/mae", mode="min")
    lines = ["step,epoch,val/mae,my metric,val/loss"]
    lines += [f"{10 * epoch + 10},{epoch},{3.0 / 4**epoch},{epoch},0.5" for epoch in range(4)]
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
    page = checked_page(run)
    (others,) = page.section("Metrics").all("table")
    shown = cards(page) | {row["metric"]: row["value"] for row in rows(others)}
    wanted = {name: f"{value:.4f}" for name, value in metrics.items() if name != "test/images"}
    assert {name: shown[name] for name in wanted} == wanted
    assert list(cards(page))[:2] == ["test/mae", "val/mae"]
    assert "Test mae 0.8571 on 88 images; val/mae 0.0000." in page.root.all("p", "lead")[0].text
    charts = page.section("Curves").all("svg", "chart")
    assert [chart.all("title")[0].text.partition(":")[0] for chart in charts] == ["mae", "my metric"]
    (data,) = json.loads(charts[0].attributes["data-lines"] or "")
    assert data["y"] == [3.0 / 4**epoch for epoch in range(4)]  # as in metrics.csv
    headings = [heading.text for heading in page.section("Curves").all("h4")]
    assert headings[0] == "mae (logarithmic)"  # a ratio of 64
    assert "Loss: 0.5 throughout." in page.section("Curves").text


@pytest.mark.parametrize(
    ("override", "keys"),
    [
        ("optim.lr=tag(log,interval(1e-4,1e-1))", {"optim.lr"}),
        ("+hydra.sweeper.params.model.width=tag(log, int(interval(8, 64)))", {"model.width"}),
        ("optim.lr=interval(1e-4,1e-1)", set()),
        ("model=cnn,mlp", set()),
    ],
)
def test_a_logarithmic_search_space_has_a_logarithmic_axis(override: str, keys: set[str]) -> None:
    assert log_keys({"overrides": [override]}) == keys
    assert log_keys({}) == set()


def test_a_page_names_the_hardware(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", host="node7", device="2 × NVIDIA H200")
    page = checked_page(run)
    assert page.root.all("p", "dim")[0].text == "Started 2026-01-31 09:30 UTC · on node7, 2 × NVIDIA H200"
    assert "device 2 × NVIDIA H200" in page.section("Environment").text
    assert "2 × NVIDIA H200" in checked_page(tmp_path).section("Environment").text


def test_mistakes_are_named_by_file(run: Path) -> None:
    (run / "evaluation").mkdir()
    mistake = {"label": "cat", "prediction": "dog", "probability": 0.973, "loss": 3.5}
    names = ["/data/test/cats/a b.jpg", "/data/test/<i>dogs/ü.png"]
    found = {"mistakes": [{"index": number, "file": name} | mistake for number, name in enumerate(names)]}
    (run / "evaluation" / "e.json").write_text(json.dumps(found))
    section = checked_page(run).section("Evaluation")
    shown = rows(section.all("table")[0])
    assert [row["file"] for row in shown] == ["cats/a b.jpg", "<i>dogs/ü.png"]
    assert shown[0]["mistake"] == "cat → dog (97 %)"
    assert section.all("figcaption")[0].text.endswith("; files in /data/test")
    assert section.all("th")[3].attributes["title"] == names[0]
    found = {"mistakes": [{"index": 12} | mistake]}
    (run / "evaluation" / "e.json").write_text(json.dumps(found))
    (row,) = rows(checked_page(run).section("Evaluation").all("table")[0])
    assert row == {"index": "12", "mistake": "cat → dog (97 %)", "loss": "3.5000"}


def test_metrics_without_intervals_have_no_empty_column(run: Path) -> None:
    (run / "evaluation").mkdir()
    found = {"figures": {"test/miou": {"value": 0.25}}, "split": "test"}
    (run / "evaluation" / "e.json").write_text(json.dumps(found))
    (table,) = checked_page(run).section("Evaluation").all("table")
    assert rows(table) == [{"metric": "test/miou", "value": "0.2500"}]


def test_a_single_epoch_is_a_value_and_not_a_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "metrics.csv").write_text("step,epoch,train/loss,val/acc\n5,0,0.9,\n10,0,0.5,0.75\n")
    curves = checked_page(run).section("Curves")
    assert "Measured once: val/acc 0.75." in curves.text
    (chart,) = curves.all("svg", "chart")
    assert chart.all("title")[0].text.startswith("Loss")


def test_the_numbers_of_an_evaluation_are_those_of_scikit_learn(run: Path) -> None:
    draws = np.random.default_rng(0)
    labels = draws.integers(3, size=200)
    predicted = np.where(draws.random(200) < 0.8, labels, draws.integers(3, size=200))
    matrix = torch.tensor(confusion_matrix(labels, predicted))
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), 3).double() * 3
    found = Predictions(logits.log_softmax(1), torch.tensor(labels), torch.tensor(predicted))
    assert torch.equal(found.confusion(), matrix)
    values, bounds = compute_metrics(found), fraction_intervals(found)

    def entry(name: str, *place: int) -> dict[str, float]:
        low, high = bounds[name]
        return {"value": float(values[name][place]), "low": float(low[place]), "high": float(high[place])}

    classes = [
        {"class": str(kind), "images": int((labels == kind).sum())}
        | {name: entry(name, kind) for name in ("precision", "recall", "f1")}
        for kind in range(3)
    ]
    content = {"figures": {"accuracy": entry("accuracy")}, "classes": classes, "images": 200, "split": "test"}
    (run / "evaluation" / "test").mkdir(parents=True)
    (run / "evaluation" / "test" / "evaluation.json").write_text(json.dumps(content))
    overall, by_class = checked_page(run).section("Evaluation").all("table")
    known = binomtest(int((labels == predicted).sum()), 200).proportion_ci(method="wilson")
    (accuracy,) = rows(overall)
    assert accuracy["value"] == f"{accuracy_score(labels, predicted):.4f}"
    assert accuracy["95 % interval"] == f"{known.low:.4f} to {known.high:.4f}"
    scores = precision_recall_fscore_support(labels, predicted)
    for kind, row in enumerate(rows(by_class)):
        assert [float(row[name]) for name in ("precision", "recall", "F1")] == pytest.approx(
            [part[kind] for part in scores[:3]], abs=6e-5
        )
        assert int(row["images"]) == scores[3][kind]


def test_ties_with_the_best_are_marked(tmp_path: Path) -> None:
    for number, acc in enumerate((0.9, 0.89, 0.5, math.nan)):
        metrics = {"val/acc": acc, "val/images": 100.0, "test/acc": 0.8}
        write_run(tmp_path / str(number), f"optim.lr={number + 1}", metrics=metrics)
    ranking = checked_page(tmp_path).section("Ranking")
    assert [row["job"] for row in rows(ranking.all("table")[0])] == ["0", "1", "2", "3"]  # NaN last
    assert "train.py optim.lr=1" in ranking.all("code")[0].text
    (comparison,) = checked_page(tmp_path / "1").section("Comparison").all("table")
    assert [row["#"] for row in rows(comparison)] == ["1", "≈ 2", "3", ""]  # NaN has no rank
    assert "their 95 % intervals overlap" in checked_page(tmp_path / "1").section("Comparison").text


def test_evaluations_that_are_being_written_are_not_shown(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = run / "evaluation" / ".test.ab12.partial"
    place.mkdir(parents=True)
    (place / "confusion_matrix.png").write_bytes(picture())
    (place / "evaluation.json").write_text(json.dumps({"figures": {"accuracy": 0.5}}))
    assert not {"Evaluation", "Images"} & set(checked_page(run).titles())
    place.rename(run / "evaluation" / "test")
    assert {"Evaluation", "Images"} <= set(checked_page(run).titles())
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    monkeypatch.setattr(evaluations, "MAX_JSON_BYTES", 10)
    page = checked_page(run)
    assert "Evaluation" not in page.titles()
    assert "Confusion matrix (evaluation/test/confusion_matrix.png)" in page.section("Images").text


@pytest.mark.parametrize("commit", ["0123456; rm -rf ~", "$(id)", 5, ["0123456"]])
def test_an_invalid_commit_is_not_part_of_a_command(tmp_path: Path, commit: object) -> None:
    run = write_run(tmp_path / "run", git={"commit": commit})
    shown = checked_page(run).section("How to reproduce").text
    assert "git checkout" not in shown
    assert "The commit of the code is not recorded." in shown


def test_exported_variants_are_shown(run: Path) -> None:
    (run / "export").mkdir()
    variant = {
        "name": "int8",
        "file": "int8.pt2",
        "bytes": 2_500_000,
        "accuracy": 0.97,
        "largest_difference": 0.02,
    }
    found = {
        "format": "onnx",
        "test_images": 400,
        "variants": [variant | {"ms": {"1": {"median": 0.25}}}, {}],
    }
    (run / "export" / "onnx.json").write_text(json.dumps(found))
    (table,) = checked_page(run).section("Exports").all("table")
    assert list(rows(table)[0].values()) == ["int8", "int8.pt2", "2.5 MB", "0.9700", "0.02", "0.25 ms"]
    assert list(rows(table)[0])[-1] == "batch of 1"


def test_without_an_evaluation_tensorboards_pictures_are_shown(run: Path) -> None:
    events = EventFileWriter(str(run))
    for step, shade in ((1, 10), (5, 20)):
        image = Summary.Image(encoded_image_string=picture(shade), height=1, width=1)
        events.add_event(
            Event(step=step, summary=Summary(value=[Summary.Value(tag="val/confusion", image=image)]))
        )
        events.add_event(
            Event(step=step, summary=Summary(value=[Summary.Value(tag="loss", simple_value=1.0)]))
        )
    value = Summary.Value(tag="mistakes", tensor=TensorProto(string_val=[b"1", b"1", picture(30)]))
    value.metadata.plugin_data.plugin_name = "images"
    events.add_event(Event(step=6, summary=Summary(value=[value])))
    events.close()
    found = {"val/confusion": (5, picture(20)), "mistakes": (6, picture(30))}
    assert read_event_images(run) == found
    (file,) = run.glob("events.out.*")
    file.write_bytes(file.read_bytes()[:-9])  # the last event is cut off
    assert read_event_images(run) == {"val/confusion": found["val/confusion"]}
    (image,) = checked_page(run).section("Images").all("img")
    assert image.attributes["alt"] == "Confusion, val (step 5)"


def test_nothing_in_the_files_becomes_part_of_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "a<b>&'\""
    run = write_run(
        folder / "run", f"model.note={json.dumps(HOSTILE)}", state="failed", error=HOSTILE, name=HOSTILE
    )
    write_run(folder / "other", "model.note=1")
    write_curve(run, 0.5, 0.6)
    table = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(table.replace("val/acc", "val/<i>acc"))
    (run / "train.log").write_text(f"\x1b[31mred\x1b[0m {HOSTILE}\x00\n")
    (run / "evaluation").mkdir()
    (run / "evaluation" / "e.json").write_text(json.dumps({"classes": [{"class": HOSTILE, "images": 1}]}))
    (run / "evaluation" / "<img src=x>.png").write_bytes(picture())
    (run / "evaluation" / "damaged<b>.png").write_bytes(b"")
    for page in (checked_page(run), checked_page(folder)):  # see what holds for all pages
        assert HOSTILE in "".join(page.root.texts)
        assert not page.root.all("i")
        assert not page.root.all("b")
    assert f"red {HOSTILE}" in "".join(checked_page(run).section("Log").texts)


def test_secrets_are_not_shown(run: Path) -> None:
    (run / "train.log").write_text("GET https://me:opensesame77@host/x\n")
    assert "opensesame77" not in (checked_page(run), (run / "report.html").read_text())[1]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"state": "running", "progress": {"epoch": 2, "epochs": 9}}, "still running at epoch 2 of 9"),
        ({"state": "failed", "error": "ValueError: no"}, "The run failed."),
        ({"state": "interrupted", "error": None}, "can be continued"),
        ({"state": "pruned"}, "search pruned the run"),
        ({"state": "paused"}, "search paused the run"),
        ({"state": "starting"}, "trained"),
        ({"state": "done", "metrics": {"test/acc": float("nan")}}, "Test accuracy nan."),
        ({"state": "done", "metrics": "none", "git": 3, "versions": [], "duration_s": "x"}, "trained"),
    ],
)
def test_a_run_in_any_state_has_a_page(tmp_path: Path, status: dict[str, Any], words: str) -> None:
    given = {"metrics": {}, "duration_s": None} | status
    run = write_run(tmp_path / "run", **given)
    page = checked_page(run)
    assert words in page.root.all("p", "lead")[0].text
    assert given.get("error") is None or given["error"] in page.root.all("pre", "error")[0].text
    write_curve(run, 0.5, 0.75)
    if status["state"] != "done":
        assert cards(checked_page(run))["val/acc"] == "0.7500"


def test_damaged_files_only_leave_sections_empty(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_curve(run, 0.5, 0.6)
    for name in ("status.json", "metrics.csv", ".hydra/overrides.yaml", "config.yaml"):
        (run / name).write_bytes(b"\xff\x00{:- [")
        page = checked_page(run)
        assert "How to reproduce" in page.titles()
    assert "missing or damaged" in page.root.all("p", "lead")[0].text


def test_a_run_is_compared_with_its_siblings(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    page = checked_page(sweep / "3")
    (table,) = page.section("Comparison").all("table")
    assert len(rows(table)) == 12
    assert [row["val/acc"] for row in rows(table)][:2] == ["0.9800", "0.9700"]
    (marked,) = table.all("tr", "marked")
    assert marked.text.split()[-1] == "3"
    other = write_run(tmp_path / "elsewhere" / "one", "model=cnn", acc=0.99)
    (table,) = checked_page(sweep / "3", compare=[str(other)]).section("Comparison").all("table")
    assert [row["run"] for row in rows(table)] == ["one", "3"]
    with pytest.raises(InputError, match=r"compare=nowhere: .*no such folder"):
        checked_page(sweep / "3", compare=["nowhere"])


def test_a_page_shows_all_of_a_sweep(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    write_run(sweep / "12", "model=mlp", "optim=sgd", "seed=4", state="failed", error="ValueError: too wide")
    (sweep / "12" / "train.log").write_text("line one\nthe last line\n")
    write_run(sweep / "13", "model=mlp", "optim=sgd", "seed=5", state="pruned")
    record = {
        "overrides": ["hydra.mode=MULTIRUN", "model=mlp,cnn"],
        "git": GIT,
        "started": "2026-01-31T09:30:00+00:00",
        "extensions": [{"overrides": ["model=vit", "seeds=3"], "started": "2026-01-31T10:30:00+00:00"}],
    }
    (sweep / "sweep.json").write_text(json.dumps(record))
    waiting = Job(14, ["model=cnn", "optim=adam", "seed=9"], ["seed=9"], "14_seed9")
    Ledger(sweep / "jobs.jsonl").write(waiting)
    for number in range(12):
        write_curve(sweep / str(number), 0.5, 0.6 + number / 100, 0.7)
    write_curve(sweep / "13", 0.55, 0.65)
    page = checked_page(sweep)
    assert page.root.all("h1")[0].text == "model × optim"
    lead = page.root.all("p", "lead")[0].text
    assert "15 jobs: 12 done" in lead
    assert "Keys that differ: model (2 values), optim (2 values)." in lead
    best_text = page.root.all("p", "lead")[1].text
    assert best_text.endswith(f": {best_line(compare([sweep]))}.")
    assert "model CNN3x3, optim Adam, the best of 4 points" in best_text
    ranking = rows(page.section("Ranking").all("table")[0])
    assert len(ranking) == 4
    best = compare([sweep]).points[0]
    assert ranking[0]["val/acc"] == f"{best.mean('val/acc'):.4f} ± {best.std('val/acc'):.4f}"
    assert ranking[0]["val/acc"] == "0.9700 ± 0.0100"
    assert (ranking[0]["n"], ranking[0]["model"], ranking[0]["optim"]) == ("3", "CNN3x3", "Adam")
    jobs = rows(page.section("All jobs").all("table")[0])
    assert [row["job"] for row in jobs[:2]] == ["11", "10"]
    assert [(row["job"], row["state"]) for row in jobs[12:]] == [
        ("12", "failed"),
        ("13", "pruned"),
        ("14_seed9", "waiting"),
    ]
    assert jobs[14]["seed"] == "9"
    assert "ValueError: too wide" in page.section("Failures").text
    assert "the last line" in page.section("Failures").text
    assert len(page.section("Parallel coordinates").all("g", "line")) == 4
    curves = page.section("Learning curves")
    assert len(curves.all("g", "band")) == 4
    assert [line.text for line in curves.all("g", "faint")] == ["pruned: 13"]
    assert "up to their last epoch: 1 run that the search pruned or paused" in curves.text
    assert "train.py -m model=mlp,cnn" in page.section("How to reproduce").text
    assert "train.py resume=last model=vit seeds=3" in page.section("How to reproduce").text
    assert "0.9700" in page.section("Best run").text
    links = [node.attributes["href"] for node in page.section("All jobs").all("a")]
    assert links[0] == "11/"


def test_a_sweep_without_results_has_a_page(tmp_path: Path) -> None:
    for number in range(2):
        write_run(tmp_path / str(number), f"seed={number}", state="failed", error="no")
    page = checked_page(tmp_path)
    assert page.titles() == ["Ranking", "Failures"]
    assert "No run has finished yet" in page.root.all("p", "lead")[0].text


def test_runs_with_different_monitors_are_ranked_by_the_more_frequent_one(tmp_path: Path) -> None:
    for number, monitor in enumerate(["val/acc", "val/acc", "val/loss"]):
        write_run(tmp_path / str(number), f"seed={number}", acc=0.5 + number / 10, monitor=monitor)
    assert "largest val/acc first" in checked_page(tmp_path).section("All jobs").text.lower()


def test_four_hundred_jobs_make_a_small_page(tmp_path: Path) -> None:
    for number in range(400):
        run = write_run(
            tmp_path / f"{number}_job", f"optim.lr={0.001 * (number + 1)}", f"optim.momentum={number % 7}"
        )
        write_curve(run, *(0.5 + epoch * number / 10**5 for epoch in range(40)))
    page = checked_page(tmp_path)
    assert len(rows(page.section("Ranking").all("table")[0])) == 400
    assert (tmp_path / "report.html").stat().st_size < 2e6
    (chart,) = page.section("Learning curves").all("svg", "chart")
    assert len(chart.all("g", "line")) == 400


def test_an_unwritable_output_is_reported_before_runs_are_read(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "render_page", lambda *_: pytest.fail("the page was made"))
    with pytest.raises(InputError, match=r"output=/proc/x/a.html: cannot be written \("):
        checked_page(run, output=Path("/proc/x/a.html"))


def test_a_page_replaces_only_another_report(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    checked_page(run, output=page)
    checked_page(run, output=page)
    page.write_text("<!doctype html>\n<html><head><title>Mine</title></head></html>\n")
    with pytest.raises(InputError, match=r"page\.html: already exists, and is not an earlier output"):
        checked_page(run, output=page)
    assert "Mine" in page.read_text()


def test_a_page_is_written_atomically(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"output=.*status.json: not an HTML file; end the name in .html"):
        checked_page(run, output=run / "status.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"output=.*file/page.html: cannot be written \("):
        checked_page(run, output=tmp_path / "file" / "page.html")
    checked_page(run, output=tmp_path / "new" / "page.html")
    checked_page(run, output=tmp_path / "new")
    (tmp_path / "new" / "folder.html").mkdir()
    with pytest.raises(InputError, match=r"output=.*cannot be written \("):
        write_page(tmp_path / "new" / "folder.html", "page")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        *("folder.html", "page.html", "report.html")
    ]
    with pytest.raises(InputError, match=r"run=.*nowhere: no such folder"):
        checked_page(tmp_path / "nowhere")
    with pytest.raises(InputError, match="contains no run"):
        checked_page(tmp_path / "new")


def test_the_command_imports_no_torch(run: Path) -> None:
    code = (
        "import runpy, sys, project.config.cli as line\n"
        "def leave(code):\n"
        "    heavy = {'torch', 'lightning', 'tensorboard', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "    print(sorted(heavy), flush=True)\n"
        "    raise SystemExit(code)\n"
        "line.exit_process = leave\n"
        "import project.config.command_options\n"
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
    )
    arguments = [str(ROOT / "scripts" / "report.py"), "run=last", f"outputs={run.parent}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith(f"{run}/report.html  ")
    assert done.stdout.splitlines()[1] == "[]"


def test_lines_are_drawn_at_their_values() -> None:
    ys = [0.0, 1.0, float("nan"), 2.0, 3.0]
    chart = line_chart("t", [Line("a", [0, 1, 2, 3, 4], ys)], name="c", x_label="step")
    figure = Page(chart.svg).root
    path = figure.all("g", "line")[0].all("path")[0]
    pieces = [
        [tuple(map(float, pair.split())) for pair in piece.split("L")]
        for piece in (path.attributes["d"] or "").split("M")[1:]
    ]
    assert [len(piece) for piece in pieces] == [2, 2]  # a gap where there is no number
    points = pieces[0] + pieces[1]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    (x0, y0), (x1, y1), (_, y3), (x4, y4) = points
    assert x1 - x0 == pytest.approx((x4 - x0) / 4, abs=0.2)
    assert y0 - y1 == pytest.approx((y0 - y4) / 3, abs=0.2)
    assert y4 < y3 < y1 < y0
    (svg,) = figure.all("svg", "chart")
    data = json.loads(svg.attributes["data-lines"] or "")
    assert data[0]["y"] == [0.0, 1.0, None, 2.0, 3.0]
    assert json.loads(svg.attributes["data-frame"] or "") == pytest.approx([0, 4, x0, x4], abs=0.01)
    assert {text.text for text in svg.all("text")} >= {"0", "1", "2", "3", "4", "step"}


def test_a_chart_is_drawn_the_same_twice_and_no_identifier_is_that_of_another() -> None:
    lines = [Line("a", [0, 1, 2], [0.5, 0.25, 0.125])]
    first, again, other = (
        line_chart("t", lines, name=name, x_label="epoch").svg for name in ("one", "one", "other")
    )
    assert first == again
    identifiers = [
        {node.attributes["id"] for node in Page(svg).everything() if "id" in node.attributes}
        for svg in (first, other)
    ]
    assert identifiers[0]
    assert not identifiers[0] & identifiers[1]
    for svg in (first, other):
        nodes = Page(svg).everything()
        found = {f"#{node.attributes['id']}" for node in nodes if "id" in node.attributes}
        assert {node.attributes["href"] for node in nodes if "href" in node.attributes} <= found
        assert "#0072b2" not in svg, "colors follow the page"
        assert "var(--c0)" in svg


def test_hostile_names_of_lines_stay_text() -> None:
    name = "\x00\x1b[31m<b>|&\ufffe\udcff \u6f22 $x$"
    chart = line_chart(name, [Line(name, [0, 1], [1, 2], color=None)], name="c", x_label=name)
    nodes = Page(chart.svg).everything()
    assert not [node for node in nodes if node.tag == "b"]
    (title,) = [node.all("title")[0].text for node in nodes if node.attributes.get("class") == "line faint"]
    assert title == "<b>|& \u6f22 $x$"
    assert "<b>|& \u6f22 $x$" in [node.text for node in nodes if node.tag == "text"]


@pytest.mark.parametrize(
    "values", [[], [1.0], [0.0, 0.0], [1e-300, 1e300], [-1e308, 1e308], [float("nan")], [5e-324], [1e-7, 2.0]]
)
@pytest.mark.parametrize("may_be_log", [False, True])
def test_any_values_are_drawn_within_the_chart(values: list[float], may_be_log: bool) -> None:
    with figure_style():
        axes = make_axes(WIDTH, HEIGHT, (50, 10, 10, 30))
        draw_lines(axes, [Line("a", range(len(values)), values)], x_label="x", may_be_log=may_be_log)
        page = Page(to_svg(axes, "a", "a"))
    (line,) = page.root.all("g", "line")
    places = [float(use.attributes[axis] or "") for use in line.all("use") for axis in ("x", "y")]
    assert len(places) == 2 * sum(value == value for value in values)
    assert all(0 <= place <= WIDTH for place in places)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(set(labels)) == len(labels) >= 2


def test_many_points_are_averaged() -> None:
    assert downsample(list(range(1000)), 10) == [49.5 + 100 * number for number in range(10)]
    assert downsample([1.0, 2.0], 10) == [1.0, 2.0]


def test_the_tests_row_belongs_to_the_last_epoch(run: Path) -> None:
    data = RunData(run)
    assert data.series["test/acc"].epochs == [2.0]
    assert data.num_epochs == 3


def test_a_job_is_trained_again_with_the_configuration_folder_of_its_sweep(tmp_path: Path) -> None:
    """A resumed sweep passes the path of its own copies to its jobs."""
    resumed = ["scripts/train.py", "-m", "--config-path", "/frozen/conf", "model=mlp"]
    job = write_run(tmp_path / "sweep" / "0", "model=mlp", command=resumed)
    alone = write_run(tmp_path / "alone", "model=mlp", command=["scripts/train.py", "-cd=conf", "model=mlp"])
    record = {"command": ["scripts/train.py", "--config-dir", "mine", "-m", "model=mlp,cnn"]}
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(record))
    assert config_flags(RunData(job).command) == ["--config-dir", "mine"]
    assert config_flags(RunData(alone).command) == ["-cd=conf"]
    (tmp_path / "sweep" / "sweep.json").write_text("damaged")
    assert RunData(job).command == []
