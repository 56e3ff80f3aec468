"""Runs survive at least five SIGKILLs (short form of `kills.py`)."""

from kills import trial


def test_kills_lose_nothing_that_was_saved_and_change_nothing() -> None:
    figures = trial(chains=1, kills=3, in_saves=2, least=3)
    assert figures.kills >= 3  # fewer than planned if runs finished earlier
    ranks = trial(chains=1, kills=2, in_saves=1, kinds=("ddp",), least=2)
    assert ranks.kills >= 2
