"""CSV cells run nothing in spreadsheets, and are read back unchanged."""

import csv
import io
import json
import string
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_sweeps import job
from written_runs import write_run

from project.inference.evaluate.metrics import Predictions
from project.inference.evaluate.output_files import write_predictions
from project.inference.predict.writers import write_csv as write_predicted
from project.reporting.compare import write_csv
from project.runs.comparison import compare
from project.runtime.csv_files import escape, unescape
from project.sweeps import job_table

HOSTILE = [
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "'=1",
    "''x",
    "a\x1b[31mb",
    "a\nb\\nc",
    "\x85",
    "\0",
]
HARMLESS = ["", "cat", "a'b", "a=b", "a\\nb", "1,5", 'a "b"', "\udce9", "図"]
NUMBERS = ["-1.5", "+1", "-1e-05", "-inf", "+nan", "-.5", "1."]


@pytest.mark.parametrize("text", HOSTILE)
def test_dangerous_cells_are_escaped(text: str) -> None:
    escaped = escape(text)
    assert escaped.startswith("'")
    assert all(character.isprintable() for character in escaped)
    assert unescape(escaped) == text


@pytest.mark.parametrize("text", HARMLESS + NUMBERS)
def test_other_cells_are_unchanged(text: str) -> None:
    assert escape(text) == unescape(text) == text


def test_every_pair_of_characters_is_read_back() -> None:
    characters = [*map(chr, range(256)), "\u2028", "\udc80"]
    texts = [one + other for one in characters for other in characters]
    assert [unescape(escape(text)) for text in texts] == texts
    assert len({escape(text) for text in texts}) == len(texts)
    assert [escape(value) for value in (None, -1.5, -1, True)] == [None, -1.5, -1, True]


def cells(text: str) -> set[str]:
    return {cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row}


def dangerous(text: str) -> set[str]:
    """Return the cells that a spreadsheet may run, by rules independent of the escaping."""
    return {
        cell
        for cell in cells(text)
        if cell[:1] in set("=+-@\t\r") and not set(cell) <= set(string.digits + "-.e")
    }


def test_no_table_holds_what_a_spreadsheet_runs(tmp_path: Path) -> None:
    formula = "=cmd|' /C calc'!A0"
    stream = io.StringIO(newline="")
    prediction = SimpleNamespace(file=formula, classes=(formula, "b"), probabilities=(0.75, 0.25))
    write_predicted(stream, [prediction], 2)
    texts = {"predict": stream.getvalue()}

    predictions = Predictions(torch.tensor([[0.75, 0.25]]).log(), torch.tensor([0]), torch.tensor([0]))
    write_predictions(tmp_path / "p.csv", predictions, [formula, "b"], torch.tensor([0]), [formula])
    texts["evaluate"] = (tmp_path / "p.csv").read_text()

    write_run(tmp_path / "runs" / "a", 'model.note="@SUM(A1)"')
    write_run(tmp_path / "runs" / "b", f"model.note={json.dumps(formula)}")
    write_csv(compare([tmp_path / "runs"], each=True), tmp_path / "c.csv")
    texts["compare"] = (tmp_path / "c.csv").read_text()
    assert "'@SUM(A1)" in cells(texts["compare"])

    jobs = [job(0, "failed", point=0, error=formula, metrics={formula: -0.5})]
    job_table.write_jobs(tmp_path / "jobs.csv", jobs)
    texts["sweep"] = (tmp_path / "jobs.csv").read_text()
    assert "-0.5" in cells(texts["sweep"])

    for name, text in texts.items():
        assert not dangerous(text), name
        assert formula in set(map(unescape, cells(text))), name
