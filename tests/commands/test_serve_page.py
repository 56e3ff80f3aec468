"""The page of the server in Chromium: drawing with mouse, touch and keyboard, pictures, and models."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked_command
import numpy as np
import pytest
from chromium import needs_chromium
from PIL import Image
from served import TIMEOUT_S, Served, serving

pytestmark = needs_chromium
Stroke = list[tuple[float, float]]
RING: Stroke = [
    (0.5 + 0.2 * math.sin(angle), 0.5 - 0.32 * math.cos(angle)) for angle in np.linspace(0, 2 * math.pi, 40)
]
LINE: Stroke = [(0.52, 0.2), (0.5, 0.5), (0.48, 0.8)]
HOSTILE_NAME = "<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Iterator[Served]:
    """Serve a network of digits, and one of color images."""
    folder = tmp_path_factory.mktemp("page")
    digits = ["model=cnn", "logger=none", "trainer.max_epochs=2", f"hydra.run.dir={folder / 'digits'}"]
    forked_command.run(*digits, cwd=folder)
    color = ["model=mlp", "data=image_folder", f"data.path={image_folder}", "data.resize=8", "logger=none"]
    color += ["trainer.max_epochs=1", "data.batch_size=8", f"hydra.run.dir={folder / 'color'}"]
    forked_command.run(*color, cwd=folder)
    with serving(f"digits={folder / 'digits'},paint={folder / 'color'}") as served:
        yield served


@pytest.fixture
def page(browser: Any, served: Served, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Open the page; check at the end that nothing failed and nothing came from elsewhere."""
    options = getattr(request, "param", {})
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    context.set_default_timeout(1000 * TIMEOUT_S)
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(dialog.message))
    page.on(
        "request", lambda one: one.url.startswith((served.url, "data:", "blob:")) or problems.append(one.url)
    )
    page.goto(served.url)
    yield page
    context.close()
    # Chromium logs refused requests, which `test_a_damaged_picture…` sends
    assert [line for line in problems if "status of 422" not in line] == []


def draw(page: Any, stroke: Stroke) -> None:
    box = page.locator("#canvas").bounding_box()
    points = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in stroke]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point)
    page.mouse.up()


def announced(page: Any) -> str:
    """Return the class that the live region announces."""
    status = page.locator("#status", has_text="Prediction")
    status.wait_for(state="attached")
    return status.text_content().removeprefix("Prediction: ").split(",")[0]


@pytest.mark.parametrize(("stroke", "digit"), [(RING, "0"), (LINE, "1")])
def test_a_stroke_is_recognized(page: Any, stroke: Stroke, digit: str) -> None:
    draw(page, stroke)
    assert announced(page) == digit
    assert page.locator("#answer").inner_text() == digit
    assert page.locator("#bars li").count() == 10
    assert page.locator("#bars li.best .name").inner_text() == digit
    assert page.locator("#input").evaluate("image => image.naturalWidth") == 28
    page.get_by_alt_text(f"Map of the evidence for {digit}").wait_for()
    page.get_by_role("button", name="Clear").click()
    assert page.locator("#bars li").count() == 0
    assert page.locator("#answer").inner_text() == "–"
    assert page.get_by_role("button", name="Clear").is_disabled()


@pytest.mark.parametrize(
    "page", [{"has_touch": True, "viewport": {"width": 390, "height": 844}}], indirect=True
)
def test_a_finger_draws(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    box = page.locator("#canvas").bounding_box()
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        places = [{"x": box["x"] + box["width"] * x, "y": box["y"] + box["height"] * y} for x, y in points]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    touch("touchStart", RING[0])
    for point in RING[1:]:
        touch("touchMove", point)
    touch("touchEnd")
    assert announced(page) == "0"
    assert page.evaluate("scrollY") == 0
    answer = page.locator("#answer").bounding_box()
    assert answer["y"] + answer["height"] < 844  # visible while drawing


def test_the_keyboard_draws_and_chooses(page: Any, tmp_path: Path) -> None:
    page.locator("#canvas").focus()
    page.keyboard.press("Space")
    for _ in range(7):
        page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Space")
    assert announced(page) == "1"
    page.keyboard.press("Backspace")
    assert page.locator("#status").text_content() == "cleared"
    Image.new("L", (28, 28)).save(tmp_path / HOSTILE_NAME)
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"file", "prepare", "SUMMARY", "A"} <= set(reached)
    with page.expect_file_chooser() as chooser:
        page.locator("#file").focus()
        page.keyboard.press("Enter")
    Image.fromarray(np.uint8(np.arange(784).reshape(28, 28) % 251)).save(tmp_path / HOSTILE_NAME)
    chooser.value.set_files(tmp_path / HOSTILE_NAME)
    assert announced(page) in "0123456789"
    assert page.locator("#file-name").inner_text() == HOSTILE_NAME


def test_a_damaged_picture_is_reported_as_text(page: Any, tmp_path: Path) -> None:
    (tmp_path / HOSTILE_NAME).write_bytes(b"x")
    page.locator("#file").set_input_files(tmp_path / HOSTILE_NAME)
    assert "no image" in page.get_by_role("alert").inner_text()
    draw(page, RING)
    assert announced(page) == "0"
    assert not page.get_by_role("alert").is_visible()


def test_half_a_drawing_is_shown_but_not_announced(page: Any, tmp_path: Path) -> None:
    (tmp_path / HOSTILE_NAME).write_bytes(b"x")
    page.locator("#file").set_input_files(tmp_path / HOSTILE_NAME)
    page.get_by_role("alert").wait_for()
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.locator("#bars li.best").wait_for()
    assert page.locator("#status", has_text="Prediction").count() == 0
    page.mouse.up()
    assert announced(page) == page.locator("#answer").inner_text()


def test_color_models_begin_with_the_picture(page: Any, image_folder: Path) -> None:
    assert page.locator("#canvas").bounding_box()["y"] < page.locator(".drop").bounding_box()["y"]
    page.get_by_label("Model").select_option("paint")
    assert page.locator("#canvas").bounding_box()["y"] > page.locator(".drop").bounding_box()["y"]
    assert page.get_by_role("heading", level=1).inner_text() == "Show a picture"
    assert not page.locator("#prepare").is_visible()
    page.locator("#file").set_input_files(next((image_folder / "test" / "bee").glob("*.jpg")))
    assert announced(page) in ("ant", "bee", "cat")
    assert page.locator("#bars .name").all_inner_texts() == ["ant", "bee", "cat"]


@pytest.mark.parametrize("page", [{"color_scheme": "dark"}], indirect=True)
def test_dark_screens_and_the_page_of_the_api(page: Any, served: Served) -> None:
    red, *_ = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert red < 60
    page.goto(f"{served.url}/docs")
    assert page.get_by_text("/models/{name}/predict").is_visible()
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == width
