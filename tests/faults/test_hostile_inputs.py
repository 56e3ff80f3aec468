"""Hostile inputs run nothing. Torch's own refusals, which need more imports, are tried by `hostile.full`."""

from hostile_inputs import cases, trial
from hostile_payload import Case


def test_no_payload_runs() -> None:
    assert "0 payloads run" in trial(heavy=False)


def test_there_are_as_many_inputs_as_are_meant() -> None:
    tried: list[Case] = cases(heavy=True)
    assert len(tried) >= 60
    assert len({case.name for case in tried}) == len(tried)
