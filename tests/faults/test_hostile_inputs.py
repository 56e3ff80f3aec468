"""Malicious inputs run no code (short form of `hostile_inputs.py`, without refusals by torch)."""

from hostile_inputs import cases, trial
from hostile_payload import Case


def test_no_payload_runs() -> None:
    assert "0 payloads run" in trial(heavy=False)


def test_all_inputs_are_tried() -> None:
    tried: list[Case] = cases(heavy=True)
    assert len(tried) >= 60
    assert len({case.name for case in tried}) == len(tried)
