"""Tests that the examples run."""

import json
import runpy
from pathlib import Path

import forked_command
import pytest
import unusual_images
from conftest import ROOT


def example(name: str) -> dict:
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


def test_all_examples_are_tested() -> None:
    assert sorted(file.stem for file in (ROOT / "examples").iterdir() if file.is_file()) == (
        ["library", "use_a_run"]
    )


def test_library_example_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert example("library")["main"](epochs=4) > 0.9
    assert list(tmp_path.iterdir()) == []


def test_use_a_run_example_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    forked_command.run("model=mlp", "trainer.max_epochs=1", "logger=none", cwd=tmp_path)
    Path("1.png").write_bytes(unusual_images.encode(unusual_images.noise_image("RGBA"), "png"))
    example("use_a_run")["main"]("last", "1.png")
    lines = capfd.readouterr().out.splitlines()
    status = json.loads(next(tmp_path.glob("outputs/*/*/status.json")).read_text())
    assert f"test accuracy {status['metrics']['test/acc']:.4f}" in lines[0]
    (prediction,) = [line for line in lines if line.startswith("1.png: ")]
    label, _, share = prediction.removeprefix("1.png: ").partition(", ")
    assert label in "0123456789"
    assert 10 <= int(share.removesuffix("%")) <= 100
