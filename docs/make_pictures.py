"""Make the pictures of the README and the guide from real runs: a sweep, and a classifier of digits.

    uv run python docs/make_pictures.py                    trains, takes the pictures, about ten minutes
    uv run python docs/make_pictures.py --data DIR         DIR contains MNIST, which is downloaded otherwise
    uv run python docs/make_pictures.py --home DIR         runs of an earlier call in DIR, no training

Needs Chromium (`apt install chromium`). Few colors keep all pictures together at a few hundred KB.
"""

import argparse
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "images"
WIDTH, HEIGHT = 1280, 900
COLORS = 128
SWEEP = ["-m", "model=mlp,cnn", "optim.lr=0.01,0.003,0.001", "seeds=2", "trainer.max_epochs=8"]
DIGITS = ["experiment=mnist_fast", "name=digit_classifier"]
URL = re.compile(r"http://127\.0\.0\.1:\d+/?\S*")
TIMEOUT_S = 180
FIVE = [
    (0.66, 0.22),
    (0.40, 0.22),
    (0.37, 0.46),
    (0.52, 0.43),
    (0.65, 0.52),
    (0.66, 0.66),
    (0.55, 0.77),
    (0.38, 0.74),
]
"""Corners of a pen's path that draws a 5, as fractions of the canvas."""


def main() -> None:
    """Train where needed, then take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--home", type=Path, help="folder that contains outputs/; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        data = arguments.data.absolute()
        os.chdir(arguments.home or temporary)  # so that no picture shows a path of this machine
        outputs = Path("outputs")
        if not (outputs / "sweep").is_dir():
            command("train", *SWEEP)
        if not (outputs / "digit_classifier").is_dir():
            command("train", *DIGITS, f"paths.data={data}")
        sweep = max((outputs / "sweep").iterdir())
        digits = max((outputs / "digit_classifier").iterdir())
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
                args=["--no-sandbox", "--disable-gpu"],
            )
            report(browser, sweep)
            with server(
                "tensorboard", "--logdir", str(sweep), "--host", "127.0.0.1", "--port", str(free_port())
            ) as url:
                tensorboard(browser, url)
            with server(*script("watch"), str(sweep), "port=0") as url:
                watch(browser, url)
            with server(*script("serve"), f"run={digits}", "port=0") as url:
                draw(browser, url)
            browser.close()
        command(
            "explain", f"run={digits}", "count=5", f"output={outputs / 'explanation'}", f"paths.data={data}"
        )
        sheet = next((outputs / "explanation").glob("*.png"))
        save(Image.open(sheet), "explanation.png")


def report(browser: Browser, sweep: Path) -> None:
    """Take a picture of the start of a sweep's report."""
    command("report", str(sweep))
    page = open_page(browser, (sweep / "report.html").absolute().as_uri())
    save(screenshot(page), "sweep-report.png")


def tensorboard(browser: Browser, url: str) -> None:
    """Take a picture of TensorBoard's first screen."""
    page = open_page(browser, url)
    page.locator("line-chart, vz-line-chart2").first.wait_for()
    save(screenshot_at_rest(page), "tensorboard.png")


def watch(browser: Browser, url: str) -> None:
    """Take a picture of the live page of a sweep."""
    page = open_page(browser, url)
    page.locator("#table tbody tr").first.wait_for()
    page.locator("#curve-charts svg").first.wait_for(state="attached")
    save(screenshot(page), "live-page.png")


def draw(browser: Browser, url: str) -> None:
    """Draw a 5 on the page of the served classifier and take a picture of the answer."""
    page = open_page(browser, url)
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in FIVE]
    page.mouse.move(*points[0])
    page.mouse.down()
    for (x0, y0), (x1, y1) in pairwise(points):
        page.mouse.move(x1, y1, steps=max(2, math.ceil(math.dist((x0, y0), (x1, y1)) / 5)))
    page.mouse.up()
    page.locator("#answer", has_text="5").wait_for()
    page.locator("#why").wait_for()  # the explanation follows the answer
    page.wait_for_timeout(500)
    save(screenshot(page), "draw-a-digit.png")


def open_page(browser: Browser, url: str) -> Page:
    """Open a page in a window of its own."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.set_default_timeout(1000 * TIMEOUT_S)
    page.goto(url)
    return page


def screenshot(page: Page) -> Image.Image:
    """Return what the window shows."""
    return Image.open(BytesIO(page.screenshot()))


def screenshot_at_rest(page: Page) -> Image.Image:
    """Return what the window shows once it has not changed for 10 s: charts are drawn one after another."""
    earlier: list[bytes] = []
    while len(set(earlier[-5:])) > 1 or len(earlier) < 5:
        page.wait_for_timeout(2500)
        earlier.append(screenshot(page).tobytes())
    return screenshot(page)


def save(image: Image.Image, name: str) -> None:
    """Write a picture with few colors and print its size."""
    PICTURES.mkdir(exist_ok=True)
    file = PICTURES / name
    image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(file, optimize=True)
    print(
        f"{file.relative_to(ROOT)}: {image.width} × {image.height}, {file.stat().st_size / 1000:.0f} KB",
        flush=True,
    )


def script(name: str) -> list[str]:
    """Return the start of a command line of `scripts/`."""
    return [sys.executable, str(ROOT / "scripts" / f"{name}.py")]


def command(name: str, *overrides: str) -> None:
    """Run a command and show its output."""
    print("$", name, *overrides, flush=True)
    subprocess.run([*script(name), *overrides], check=True)


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def server(*words: str) -> Iterator[str]:
    """Start a server, yield its URL as soon as it answers, and end it.

    Raises:
        SystemExit: the server ended early, or gave no answer in time.
    """
    environment: dict[str, Any] = {**os.environ, "PYTHONUNBUFFERED": "1"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(
            words, stdout=output, stderr=subprocess.STDOUT, env={**environment, "PATH": path}
        ) as process,
    ):
        try:
            yield wait_for_url(process, output)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for_url(process: "subprocess.Popen[bytes]", output: Any) -> str:
    """Return the URL that a server prints, once it answers."""
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.5)
        output.seek(0)
        if found := URL.search(output.read()):
            try:
                urllib.request.urlopen(found[0], timeout=10).close()  # noqa: S310
            except OSError:
                continue
            return found[0]
    output.seek(0)
    raise SystemExit(f"{process.args}: no answer\n{output.read()}")


if __name__ == "__main__":
    main()
