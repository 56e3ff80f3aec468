"""Reports in Chromium, and TensorBoard on the runs of a sweep."""

import json
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chromium import TIMEOUT_S, needs_chromium
from PIL import Image
from test_report import picture
from written_runs import write_curve, write_run, write_sweep

from project.loggers.tensorboard import TensorBoard
from project.reporting.html.command import write_report
from project.runs.sweep_jobs import Job, Ledger

pytestmark = pytest.mark.slow


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(1000 * TIMEOUT_S)
    yield context.new_page()
    context.close()


def show(page: Any, file: Path) -> None:
    """Open a report, and check that it loads no other file and logs nothing to the console."""
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.absolute().as_uri())
    assert [url for url in asked if not url.startswith("data:")] == [file.absolute().as_uri()]
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == width
    page.set_viewport_size({"width": 1280, "height": 900})
    assert said == []


def sizes(page: Any, selector: str) -> list[tuple[float, float]]:
    boxes = [one.bounding_box() for one in page.locator(selector).all() if one.is_visible()]
    return [(box["width"], box["height"]) for box in boxes]


@needs_chromium
def test_a_runs_report_is_all_there(tmp_path: Path, page: Any) -> None:
    run = write_run(tmp_path / "run", "model=cnn", acc=0.9)
    write_curve(run, 0.5, 0.9, 0.8)
    (run / "evaluation").mkdir()
    (run / "evaluation" / "confusion_matrix.png").write_bytes(picture())
    show(page, write_report(str(run), None, None, tmp_path))
    assert page.get_by_role("heading", level=1).inner_text() == "run"
    charts = sizes(page, "svg.chart")
    assert len(charts) == 2
    assert all(width > 400 and height > 200 for width, height in charts)
    assert page.locator("img").evaluate_all("images => images.map(image => image.naturalWidth)") == [1]
    page.locator("svg.chart").first.hover()  # the monitored metric
    assert "val" in page.locator("#tip").inner_text()
    assert page.locator("pre.commands button").count() == 3
    assert not page.get_by_text("model:", exact=False).first.is_visible()  # the configuration is folded
    page.get_by_text("Whole configuration").click()
    assert page.get_by_text("_target_: project.modules.networks.cnn.CNN3x3").is_visible()
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(background) != light


@needs_chromium
def test_a_sweeps_report_has_all_rows_and_sorts_them(tmp_path: Path, page: Any) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    for number in range(12):
        write_curve(sweep / str(number), 0.5, 0.6 + number / 100, 0.7)
    show(page, write_report(str(sweep), None, None, tmp_path))
    charts = sizes(page, "svg.chart")
    assert len(charts) == 4  # parallel coordinates, learning curves, and two of the best run
    assert all(width > 400 and height > 200 for width, height in charts)
    table = page.locator("#all-jobs table")
    headings = [text.split(" ↕")[0].strip() for text in table.locator("thead th").all_inner_texts()]
    assert headings == [
        "job",
        "model",
        "optim",
        "seed",
        "val/acc",
        "test/acc",
        "val/loss",
        "state",
        "time",
    ]
    assert table.locator("tbody tr").count() == 12
    accuracies = table.locator("tbody tr td:nth-child(5)")
    best_first = accuracies.all_inner_texts()
    assert best_first[0] == "0.9800"
    heading = table.locator("thead").get_by_text("val/acc")
    heading.click()  # the best first
    assert accuracies.all_inner_texts() == best_first
    heading.press("Enter")
    assert accuracies.all_inner_texts() == best_first[::-1]
    table.locator("thead").get_by_text("val/loss").click()
    assert table.locator("tbody tr td:nth-child(7)").all_inner_texts()[0] == "0.0200"
    table.get_by_text("job", exact=True).click()
    assert table.locator("tbody tr th").all_inner_texts() == [str(number) for number in range(12)]


@needs_chromium
def test_a_report_of_800_jobs_has_pages_and_a_filter(tmp_path: Path, page: Any) -> None:
    sweep = tmp_path / "sweep with a long name, spaces and <b>"
    jobs = []
    for number in range(800):
        state = "done" if number < 100 else "failed" if number < 140 else "waiting"
        overrides = [f"optim.lr={0.001 * (number + 1)}", f"model.note={json.dumps('x' * 50)}"]
        job = Job(number, overrides, overrides, f"{number:03}_{'long_name_' * 5}", point=number)
        if state != "waiting":
            error = "CUDA out of memory" if state == "failed" else None
            run = write_run(sweep / job.name, *overrides, acc=0.9 - number / 1000, state=state, error=error)
            write_curve(run, *(0.5 + epoch * number / 10**5 for epoch in range(10)))
        jobs.append(replace(job, state=state))
    (sweep / "sweep.json").write_text("{}")
    (sweep / "jobs.jsonl").touch()
    Ledger(sweep / "jobs.jsonl").write(*jobs)
    show(page, write_report(str(sweep), None, None, tmp_path))
    for section in ("#ranking", "#ranking .tabled"):
        assert page.locator(section).first.is_visible()
    rows, pager = page.locator("#ranking tbody tr:visible"), page.locator("#ranking .pager")
    assert rows.count() == 25
    assert "rows 1 to 25 of 800" in pager.inner_text()
    pager.get_by_text("next").click()
    assert rows.first.locator("th").inner_text().startswith("025_")
    pager.locator("select").select_option(label="40 failed")
    assert "rows 1 to 25 of 40" in pager.inner_text()
    assert set(rows.locator(".badge").all_inner_texts()) == {"failed"}
    pager.get_by_text("all", exact=True).click()
    assert rows.count() == 40
    failures = page.locator("#failures")
    assert failures.locator("article").count() == 1  # one reason
    assert "40 jobs for the same reason" in failures.inner_text()
    assert "optim.lr=0.001" in page.locator("#ranking pre.commands").inner_text()


@needs_chromium
def test_a_report_of_100_classes_folds_most_of_them(tmp_path: Path, page: Any) -> None:
    run = write_run(tmp_path / "run", "model=cnn", acc=0.9)
    write_curve(run, 0.5, 0.9, 0.8)
    names = [f"class {number} {'with a long name ' * (number % 5)}" for number in range(100)]
    scores = [{"value": number / 100, "low": number / 200, "high": 1.0} for number in range(100)]
    classes = [
        {"class": name, "images": 50, "precision": score, "recall": score, "f1": score}
        for name, score in zip(names, scores, strict=True)
    ]
    mistakes = [
        {
            "index": number,
            "file": f"{'folder/' * 30}{number}.jpg",
            "label": names[number],
            "prediction": names[4],
        }
        | {"probability": 0.973, "loss": 3.0}
        for number in range(40)
    ]
    (run / "evaluation" / "test").mkdir(parents=True)
    found = {"figures": {"accuracy": 0.5}, "images": 5000, "classes": classes, "mistakes": mistakes}
    (run / "evaluation" / "test" / "evaluation.json").write_text(json.dumps(found))
    show(page, write_report(str(run), None, None, tmp_path))
    lowest, highest = (
        page.locator("#evaluation .tabled", has_text=f"with the {kind} F1") for kind in ("lowest", "highest")
    )
    assert lowest.locator("tbody tr").count() == highest.locator("tbody tr").count() == 10
    assert lowest.locator("tbody td:nth-child(5)").first.inner_text() == "0.0000"
    assert highest.locator("tbody td:nth-child(5)").first.inner_text() == "0.9900"
    every = page.locator("#evaluation details table")
    assert not every.is_visible()
    page.get_by_text("All 100 classes").click()
    assert every.locator("tbody tr:visible").count() == 25
    every.get_by_text("F1", exact=True).click()  # the best first
    assert every.locator("tbody tr:visible td:nth-child(5)").first.inner_text() == "0.9900"
    worst = page.locator("#evaluation .tabled", has_text="Most confident mistakes")
    assert worst.locator("tbody th").first.inner_text().endswith("0.jpg")
    assert "(97\N{NO-BREAK SPACE}%)" in worst.locator("tbody td").first.inner_text()


@needs_chromium
def test_values_of_a_chart_are_read_by_keyboard(tmp_path: Path, page: Any) -> None:
    run = write_run(tmp_path / "run", "model=cnn", acc=0.9)
    write_curve(run, 0.5, 0.9, 0.8)
    show(page, write_report(str(run), None, None, tmp_path))
    chart, tip = page.locator("svg.chart").first, page.locator("#tip")
    assert tip.get_attribute("role") == "status"
    page.keyboard.press("Tab")
    for _ in range(30):
        if chart.evaluate("chart => chart === document.activeElement"):
            break
        page.keyboard.press("Tab")
    assert "epoch 3" in tip.inner_text()
    assert "validation: 0.8" in tip.inner_text()
    page.keyboard.press("ArrowLeft")
    assert "validation: 0.9" in tip.inner_text()
    page.keyboard.press("Home")
    assert "validation: 0.5" in tip.inner_text()
    page.keyboard.press("Escape")
    assert tip.is_hidden()


def write_events(folder: Path) -> None:
    """Write event files of six runs, as training does."""
    for number in range(6):
        model, lr = ("CNN", "MLP")[number // 3], 10.0 ** -(1 + number % 3)
        run = folder / f"{number}_{model.lower()}_lr{lr:g}"
        run.mkdir(parents=True)
        logger = TensorBoard(str(run))
        logger.log_hyperparams(
            {"loss.label_smoothing": number % 2, "model": model, "optim.lr": lr, "seed": 1}
        )
        logger.log_config(f"model:\n  _target_: project.{model}\noptim:\n  lr: {lr:g}\n")
        for step in (10, 20, 30):
            course = {"train/acc": 0.5 + step / 100, "train/loss": 1 / step, "train/lr": lr}
            course |= {"val/acc": 0.5 + step / 100 + number / 100, "val/loss": 2 / step}
            logger.log_metrics(course, step=step)
        result = {"val/best_acc": 0.8 + number / 100, "test/acc": 0.5 + number / 100, "test/loss": 0.25}
        logger.log_metrics(result, step=30)
        logger.log_image("test/confusion", Image.new("RGB", (8, 8)), 30)
        logger.log_results({"val/acc": 0.8 + number / 100}, "val/acc")
        logger.finalize("success")


@pytest.fixture(scope="module")
def tensorboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a TensorBoard that has loaded six runs."""
    folder = tmp_path_factory.mktemp("runs")
    write_events(folder)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1"]
    command += ["--port", "0", "--load_fast", "false", "--reload_interval", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    watchdog = threading.Timer(5 * TIMEOUT_S, process.kill)
    watchdog.start()
    try:
        assert process.stderr is not None
        found = (re.search(r"http://127\.0\.0\.1:\d+/", line) for line in process.stderr)
        address = next((match[0] for match in found if match), "")
        assert address, "TensorBoard did not start"
        deadline = time.monotonic() + TIMEOUT_S
        while len(session_groups(address)) < 6:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield address
    finally:
        watchdog.cancel()
        process.terminate()
        process.wait(30)
        process.stderr.close()


def post(address: str, route: str, content: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps({"experimentName": "", **content}).encode()
    request = urllib.request.Request(  # noqa: S310
        f"{address}data/plugin/hparams/{route}", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
        return json.loads(answer.read())


def session_groups(address: str) -> list[dict[str, Any]]:
    statuses = [f"STATUS_{name}" for name in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")]
    wanted = {"allowedStatuses": statuses, "colParams": [], "startIndex": 0, "sliceSize": 100}
    try:
        return post(address, "session_groups", wanted).get("sessionGroups", [])
    except urllib.error.HTTPError:  # nothing has been read yet
        return []


def test_tensorboard_has_a_row_a_run_with_results_first(tensorboard: str) -> None:
    groups = {group["name"].split()[0]: group for group in session_groups(tensorboard)}
    assert len(groups) == 6
    group = groups["4_mlp_lr0.01"]
    assert {name.strip(): value for name, value in group["hparams"].items()} == {
        "val/best_acc": pytest.approx(0.84),
        "test/acc": pytest.approx(0.54),
        "test/loss": 0.25,
        "loss.label_smoothing": 0.0,
        "model": "MLP",
        "optim.lr": 0.01,
        "seed": 1.0,
    }
    values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
    assert values == pytest.approx(
        {"train/acc": 0.8, "train/loss": 1 / 30, "val/acc": 0.84, "val/loss": 2 / 30, "vitals/lr": 0.01}
    )
    found = post(tensorboard, "experiment", {})["hparamInfos"]
    # The page shows the first five; those that differ come first.
    assert [one["name"].strip() for one in found if one["differs"]] == [
        *("val/best_acc", "test/acc", "optim.lr", "model", "loss.label_smoothing"),
    ]


@needs_chromium
def test_tensorboards_first_screen_shows_curves_of_training_and_validation(
    tensorboard: str, page: Any
) -> None:
    page.goto(tensorboard)
    for tag in ("train/acc", "train/loss", "val/acc", "val/loss"):
        card = page.locator("scalar-card-component", has_text=tag).first
        card.wait_for()
        plot = card.locator("line-chart").bounding_box()
        assert plot["y"] + 50 < 900, "a part of the curves"
        assert 260 < plot["x"] < plot["x"] + plot["width"] < 1280
    assert page.locator("scalar-card-component").count() == 4, "no chart of one dot a run"


@needs_chromium
def test_tensorboards_pages_show_the_runs(tensorboard: str, page: Any) -> None:
    page.goto(f"{tensorboard}#hparams")
    for text in ("val/best_acc", "test/acc", "optim.lr", "model"):
        title = page.locator(".table-header.table-cell", has_text=re.compile(rf"^\s*{text}\s*$")).first
        title.wait_for()
        box = title.bounding_box()
        assert box["x"] + box["width"] < 1280
    names = page.locator(
        ".table-cell:not(.table-header)", has_text=re.compile(r"^\s*\d_(cnn|mlp)_lr[\d.]+\s")
    )
    names.nth(5).wait_for()
    assert len(set(names.all_inner_texts())) == 6
    page.goto("about:blank")  # only another fragment would not load the page anew
    page.goto(f"{tensorboard}#custom_scalars")
    page.get_by_text("training and validation").first.wait_for()
    page.goto("about:blank")
    page.goto(f"{tensorboard}#text")
    page.locator("code", has_text="_target_: project.CNN").first.wait_for()
    page.locator("td", has_text="val/best_acc").first.wait_for()
