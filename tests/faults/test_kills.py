"""A short form of `kills.py`: two runs, killed five times."""

from kills import trial


def test_kills_lose_nothing_that_was_saved_and_change_nothing() -> None:
    figures = trial(chains=1, kills=3, in_saves=2)
    assert figures.kills == 3
    ranks = trial(chains=1, kills=2, in_saves=1, kinds=("ddp",))
    assert ranks.kills == 2
