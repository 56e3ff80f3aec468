"""Faults of a run on two devices (short form of `process_groups.py`)."""

from pathlib import Path

import pytest
from process_groups import MADE_UP, STREAMED, Cell, preload, try_cell

from project.training.ddp import supervisor


@pytest.mark.parametrize(
    "cell",
    [
        Cell("raise", "rank 1"),
        Cell("SIGKILL", "rank 0"),
        Cell("SIGSTOP", "rank 1"),
        Cell("SIGTERM", "group", data=STREAMED),
        Cell("SIGINT", "rank 1"),
    ],
    ids=lambda cell: f"{cell.name} to {cell.target}{'' if cell.data is MADE_UP else ' with workers'}",
)
def test_a_fault_ends_all_ranks_and_loses_nothing(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preload()
    monkeypatch.setattr(supervisor, "MAX_STOPPED_S", 2.0)
    assert try_cell(cell, tmp_path) >= 0
