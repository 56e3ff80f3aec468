"""Runs survive at least five SIGKILLs (short form of `kills.py`)."""

from kills import trial


def test_kills_lose_no_saved_progress_and_change_no_result() -> None:
    figures = trial(chains=1, kills=3, in_saves=2, least=3)
    assert figures.kills >= 3  # fewer than planned if runs finished earlier
    ranks = trial(chains=1, kills=2, in_saves=1, kinds=("ddp",), least=2)
    assert ranks.kills >= 2
