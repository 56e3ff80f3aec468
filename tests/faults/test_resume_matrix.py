"""Resumed runs have the results of uninterrupted ones (the most important cells of `resume_matrix.py`)."""

from pathlib import Path

import pytest
from conftest import Compose
from matrix_cells import SPECIAL, pairwise
from resume_matrix import check

from project.modules.classifier import ImageClassifier

SHORT = {
    "interrupted again and again": (0, 2, 4, 5, 6),
    "all places, chunks": (1, 3, 4),
    "all places, ranks": (0, 2),
    "all places, accumulated": (1, 3),
    "again and again, workers": (0, 1),
    "validation every second epoch": (2, 3),
    "validation in mid-epoch": (0, 1),
    "stopped in mid-epoch": (2, 3),
    "steps accumulated": (1,),
    "resting layers": (2,),
    "told to stop, accumulated": (1,),
    "paused": (0, 1),
    "paused, ranks": (0,),
}
"""Indices of the places to test."""


@pytest.mark.parametrize("name", SHORT)
def test_a_resumed_run_has_the_result_of_an_uninterrupted_one(
    name: str, composed: Compose, tmp_path: Path
) -> None:
    cell = SPECIAL[name]
    places = tuple(cell.places[number] for number in SHORT[name])
    assert check(cell._replace(places=places), composed, tmp_path, thorough=False) == len(places)


def test_differences_are_detected(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageClassifier, "_restore_metrics", lambda self: None)
    cell = SPECIAL["all places"]
    with pytest.raises(AssertionError, match=r"^resumed at Place\(hook='batch', epoch=1, batch=2\)"):
        check(cell._replace(places=cell.places[2:3]), composed, tmp_path, thorough=False)


def test_all_pairs_of_values_occur_in_a_cell() -> None:
    assert len(pairwise()) == 37
