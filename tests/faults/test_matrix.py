"""Interrupted runs end as uninterrupted ones: the cells of the matrix that matter most."""

from pathlib import Path

import pytest
from conftest import Compose
from matrix import SPECIAL, Cell, check, pairwise

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
    "resting layers": (1,),
}
"""Which of their places."""


@pytest.mark.parametrize("name", SHORT)
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(
    name: str, composed: Compose, tmp_path: Path
) -> None:
    cell = SPECIAL[name]
    places = tuple(cell.places[number] for number in SHORT[name])
    assert check(cell._replace(places=places), composed, tmp_path) == len(places)


def test_a_difference_would_be_seen(composed: Compose, tmp_path: Path) -> None:
    class Forgetful(Cell):
        """A cell whose resumed run forgets something."""

    cell = SPECIAL["all places"]
    place = cell.places[2:3]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("project.modules.metrics.LossAndAccuracy.restore", lambda *_: None)
        with pytest.raises(AssertionError, match=r"resumed at Place.*: metrics: train/loss|: table"):
            check(cell._replace(places=place), composed, tmp_path)


def test_all_pairs_of_values_meet_in_a_cell() -> None:
    assert len(pairwise()) == 37
