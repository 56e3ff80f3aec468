"""Damaged checkpoints are detected (short form of `damaged_checkpoints.py`)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from damaged_checkpoints import KINDS, RUN, flips_found, newest_is_passed_over, one_line_if_none_is_left
from forked_attempts import only_run, run

from project.runs.run_folder import RunFolder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunFolder]:
    cwd = tmp_path_factory.mktemp("whole")
    run(RUN, cwd)
    return only_run(cwd)


@pytest.mark.parametrize("kind", ["truncate", "flip", "other_architecture", "missing"])
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(
    whole: RunFolder, tmp_path: Path, kind: str
) -> None:
    newest_is_passed_over(whole, tmp_path, KINDS[kind])


@pytest.mark.parametrize("kind", ["empty", "html", "other_architecture", "other_version"])
def test_damage_of_all_checkpoints_is_one_error_line(whole: RunFolder, tmp_path: Path, kind: str) -> None:
    one_line_if_none_is_left(whole, tmp_path, KINDS[kind])


def test_every_flipped_bit_is_found(whole: RunFolder, tmp_path: Path) -> None:
    assert flips_found(whole, tmp_path, 20) == 20
