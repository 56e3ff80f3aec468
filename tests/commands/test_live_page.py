"""Pages of `watch.py` and `runs.py page=true` in Chromium, and their answers without a browser."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import TIMEOUT_S, needs_chromium
from conftest import ROOT
from written_runs import write_curve, write_run, write_sweep

from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import Job

pytestmark = pytest.mark.slow


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(1000 * TIMEOUT_S)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    yield page
    context.close()
    assert [error for error in errors if "net::ERR" not in error and "400" not in error] == []


def expect(locator: Any) -> Any:
    from playwright.sync_api import expect

    return expect(locator)


@contextmanager
def serving(script: str, *words: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Yield the URL of a page and its process, which is ended."""
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *words, "port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watchdog = threading.Timer(4 * TIMEOUT_S, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line
        yield line.split()[0], process
    finally:
        watchdog.cancel()
        process.terminate()
        process.wait(30)
        process.stdout.close()  # type: ignore[union-attr]


def write_running(folder: Path, *overrides: str, **status: Any) -> Path:
    started = datetime.now(UTC).isoformat()
    facts = {"state": "running", "pid": os.getpid(), "host": platform.node(), "started": started}
    return write_run(folder, *overrides, **facts | status)


def change_status(run: Path, **changes: Any) -> None:
    file = run / "status.json"
    text = json.dumps(json.loads(file.read_text()) | changes)
    file.with_suffix(".new").write_text(text)
    file.with_suffix(".new").replace(file)


@pytest.fixture
def growing_sweep(tmp_path: Path) -> Path:
    """Return a sweep of 12 finished jobs, a running one and one that has not started."""
    folder = write_sweep(tmp_path / "a sweep")
    (folder / "sweep.json").write_text(json.dumps({"host": "another machine", "overrides": []}))
    run = write_running(
        folder / "12", "model=cnn", "seed=4", progress={"epoch": 1, "epochs": 4, "val/acc": 0.31}
    )
    (run / "metrics.csv").write_text("step,epoch,val/acc\n10,0,0.31\n")
    (run / "train.log").write_text("first line\n")
    states = {12: "running", 13: "waiting"}
    jobs = [
        Job(
            number,
            [],
            ["model=cnn", f"seed={number}"],
            str(number),
            state=states.get(number, "done"),  # type: ignore[arg-type]
            started=None if number == 13 else "2026-01-31T09:30:00+00:00",
        )
        for number in range(14)
    ]
    SweepFolder(folder).ledger.write(*jobs)
    return folder


@needs_chromium
def test_page_of_a_sweep_follows_its_files(growing_sweep: Path, page: Any) -> None:
    run = growing_sweep / "12"
    with serving("watch", str(growing_sweep)) as (url, process):
        page.goto(url)
        expect(page.locator("#table tbody tr")).to_have_count(14)
        row = page.locator("#table tbody tr", has=page.get_by_role("button", name="12", exact=True))
        expect(row.locator(".badge")).to_have_text("running")
        expect(row).to_contain_text("0.3100")
        expect(row).to_contain_text("1/4")
        expect(page.locator("#progress")).to_contain_text("12 of 14 jobs ended")
        expect(page.locator("#states")).to_contain_text("1 waiting")
        assert page.evaluate("document.querySelector('progress').value") == pytest.approx((12 + 0.25) / 14)
        row.get_by_role("button").click()
        expect(page.locator("#log")).to_have_text("first line\n")
        with (run / "train.log").open("a") as stream:
            stream.write("second line\n")
        with (run / "metrics.csv").open("a") as stream:
            stream.write("20,1,0.5\n")
        expect(page.locator("#log")).to_contain_text("second line")

        change_status(run, state="done", metrics={"val/acc": 0.9987, "test/acc": 0.9}, value=0.9987)
        expect(row.locator(".badge")).to_have_text("done")
        expect(row).to_contain_text("0.9987")
        expect(page.locator("#best")).to_contain_text("best run")
        failed = Job(13, [], ["model=cnn", "seed=13"], "13", state="failed", error="RuntimeError: no room")
        SweepFolder(growing_sweep).ledger.write(failed)
        expect(page.locator("#failures")).to_contain_text("RuntimeError: no room")
        expect(page.locator("#end")).to_have_text("The sweep has ended.")
        expect(page.locator("#progress")).to_be_hidden()
        shown = page.locator("#table tbody tr").all_inner_texts()
        for number in range(13):
            status = json.loads((growing_sweep / str(number) / "status.json").read_text())
            line = next(text.split() for text in shown if text.split()[0] == str(number))
            assert f"{status['metrics']['val/acc']:.4f}" in line
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        page.locator("#filter").fill("seed=1")  # asks the server
        expect(page.locator("#connection")).to_contain_text("does not answer")


@needs_chromium
def test_nothing_is_written_while_a_sweep_is_watched(growing_sweep: Path, page: Any) -> None:
    before = {file: file.stat().st_mtime_ns for file in growing_sweep.rglob("*")}
    with serving("watch", str(growing_sweep)) as (url, _):
        page.goto(f"{url}?run=12")
        expect(page.locator("#log")).to_have_text("first line\n")
    assert {file: file.stat().st_mtime_ns for file in growing_sweep.rglob("*")} == before


def write_many(folder: Path, count: int) -> Path:
    """Write runs that differ in the learning rate and the seed."""
    first = write_run(folder / "0", "optim.lr=0.1", "seed=1")
    config, status = (first / "config.yaml").read_text(), json.loads((first / "status.json").read_text())
    shutil.rmtree(first)
    for number in range(count):
        lr, seed, acc = (0.1, 0.01)[number % 2], number % 5 + 1, (number * 37 % count) / count
        run = folder / f"run_{number}"
        (run / ".hydra").mkdir(parents=True)
        text = config.replace("lr: 0.1", f"lr: {lr}").replace("seed: 1", f"seed: {seed}")
        (run / "config.yaml").write_text(text)
        (run / ".hydra" / "overrides.yaml").write_text(f"- optim.lr={lr}\n- seed={seed}\n")
        (run / "status.json").write_text(json.dumps(status | {"metrics": {"val/acc": acc}}))
    return folder


@needs_chromium
def test_a_thousand_runs_are_filtered_grouped_and_linked(tmp_path: Path, page: Any) -> None:
    folder = write_many(tmp_path / "outputs", 1000)
    values = {number: number * 37 % 1000 / 1000 for number in range(1000)}
    with serving("runs", str(folder), "page=true") as (url, _):
        page.goto(url)
        rows = page.locator("#table tbody tr")
        expect(rows).to_have_count(1000)
        page.locator("#filter").fill("lr<=0.05 val/acc>=0.9")  # open ranges, also on a logarithmic axis
        expect(page.locator("#count")).to_contain_text("50 of 1000 runs")
        page.locator("#filter").fill("lr=0.1 val/acc>=0.9")
        wanted = [number for number, acc in values.items() if number % 2 == 0 and acc >= 0.9]
        expect(page.locator("#count")).to_contain_text(f"{len(wanted)} of 1000 runs")
        expect(rows).to_have_count(len(wanted))
        heading = page.locator("#table thead th", has_text="val/acc")
        heading.focus()
        heading.press("Enter")
        assert page.locator("#table thead th[aria-sort=descending]").inner_text().startswith("val/acc")
        best = max(wanted, key=values.__getitem__)
        expect(rows.first).to_contain_text(f"run_{best}")
        page.locator("#group").select_option("-seed")
        expect(rows).to_have_count(1)
        chosen = [values[number] for number in wanted]
        score = f"{np.mean(chosen):.4f} ± {np.std(chosen, ddof=1):.4f} ({len(chosen)})"
        expect(rows.first).to_contain_text(score)

        page.goto(page.url)  # the address keeps the view
        expect(rows.first).to_contain_text(score)
        expect(page.locator("#filter")).to_have_value("lr=0.1 val/acc>=0.9")
        page.locator("#group").select_option("")
        page.locator("#filter").fill("lrr=0.1")
        expect(page.locator("#filter-error")).to_contain_text("no column lrr; did you mean lr?")
        page.locator("#reset").click()
        expect(rows).to_have_count(1000)

        handle = page.locator("#parallel-chart .handle").last
        handle.scroll_into_view_if_needed()
        box = handle.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
        page.mouse.up()
        condition = page.locator("#filter").input_value()
        limit = re.fullmatch(r"val/acc>=([\d.]+)", condition)
        assert limit, condition
        expect(rows).to_have_count(sum(acc >= float(limit[1]) for acc in values.values()))
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") == width


HOSTILE = "<img src=x onerror=alert(1)>"


@needs_chromium
def test_names_are_text_and_notes_are_saved(tmp_path: Path, page: Any) -> None:
    folder = tmp_path / "outputs"
    run = write_run(folder / f"a {HOSTILE}", 'model.kind="<b>bold</b>"', state="failed", error=HOSTILE)
    (run / "train.log").write_text(f"{HOSTILE}\n")
    write_curve(write_run(folder / "b 'quoted' \"name\" ü", 'model.kind="plain"'), 0.5, 0.6)
    with serving("runs", str(folder), "page=true") as (url, _):
        page.goto(url)
        expect(page.locator("#table tbody tr")).to_have_count(2)
        page.locator("#table").get_by_role("button", name="a <img").click()
        expect(page.locator("#log")).to_have_text(f"{HOSTILE}\n")
        page.get_by_label("Tags").fill("<i>x</i> paper")
        page.get_by_label("Note").fill(f"{HOSTILE}\nsecond line")
        page.get_by_role("button", name="Save").click()
        expect(page.locator("#saved")).to_contain_text("not saved: <i>x</i>: not a tag")
        page.get_by_label("Tags").fill("paper")
        page.get_by_role("button", name="Save").click()
        expect(page.locator("#table .tag")).to_have_text("paper")
        assert json.loads((run / "notes.json").read_text()) == {
            "tags": ["paper"],
            "note": f"{HOSTILE}\nsecond line",
        }
        expect(page.locator("#failures")).to_contain_text(HOSTILE)
        assert page.locator("main img, main b, main i").count() == 0
        page.locator("#filter").fill("note~second")
        expect(page.locator("#table tbody tr")).to_have_count(1)
