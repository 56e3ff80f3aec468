import io
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from project.runtime.atomic_files import LogFile
from project.runtime.console import Column, error_block, fact_block, has_color, table

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
ROWS = [
    ["cnn", "outputs/sweep/2026-01-31/3_cnn", "done", "0.9871 ± 0.0020", 3],
    ["图像", "x", "failed", None, "12"],
]
COLUMNS = ["model", "folder", "state", "val/acc", "n"]


def test_a_table_as_plain_text() -> None:
    assert table(COLUMNS, ROWS, width=100, color=False).splitlines() == [
        "model  folder                          state           val/acc   n",
        "cnn    outputs/sweep/2026-01-31/3_cnn  done    0.9871 ± 0.0020   3",
        "图像   x                               failed                   12",
    ]


def test_a_table_fits_its_width() -> None:
    lines = table(COLUMNS, ROWS, width=50, color=False, indent=2).splitlines()
    assert lines[1] == "  cnn    outpu…/3_cnn  done    0.9871 ± 0.0020   3"
    assert max(map(len, lines)) <= 50


def test_fixed_columns_are_not_shortened() -> None:
    columns = [Column("name", fixed=True, right=True), "text"]
    rows = [["a" * 30, "b" * 30], ["c", "d"]]
    assert table(columns, rows, width=40, color=False).splitlines()[1:] == [
        f"{'a' * 30}  bbb…bbbb",
        f"{'c':>30}  d",
    ]


def test_a_table_without_rows_has_its_headings() -> None:
    assert table(["a", "b"], [], width=40, color=False) == "a  b"


def test_colors_change_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain, colored = (table(COLUMNS, ROWS, width=50, color=color) for color in (False, True))
    assert "\x1b[" in colored
    assert [line.rstrip() for line in ESCAPES.sub("", colored).splitlines()] == plain.splitlines()


@pytest.mark.parametrize("color", [False, True])
def test_errors_have_a_line_each(color: bool) -> None:
    block = error_block("optim.lrr=1: no key optim.lrr; did you mean optim.lr?\nno key", color=color)
    assert ESCAPES.sub("", block).splitlines() == [
        "error: optim.lrr=1: no key optim.lrr; did you mean optim.lr?",
        "error: no key",
    ]


@pytest.mark.parametrize("color", [False, True])
def test_facts_are_aligned(color: bool) -> None:
    block = fact_block({"model": "CNN", "run": "[bold]10 epochs"}, color=color)
    assert ESCAPES.sub("", block).splitlines() == ["  model  CNN", "  run    [bold]10 epochs"]


def test_only_terminals_without_no_color_have_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert has_color(terminal)
    assert not has_color(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_color(terminal)


def test_log_files_have_no_colors(tmp_path: Path) -> None:
    handler = LogFile(str(tmp_path / "train.log"))
    text = fact_block({"model": "CNN"}, color=True)
    handler.emit(logging.LogRecord("project", logging.INFO, "", 0, text, None, None))
    handler.close()
    assert (tmp_path / "train.log").read_text() == "  model  CNN\n"


def test_plain_text_needs_no_rich() -> None:
    code = (
        "import sys; from project.runtime.console import *; "
        "print(table(['a'], [['b']])); print(error_block('c')); print(fact_block({'d': 'e'})); "
        "assert 'rich' not in sys.modules"
    )
    assert subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout == ("a\nb\nerror: c\n  d  e\n")
