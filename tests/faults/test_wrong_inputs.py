"""Wrong input is refused at once in a few lines and leaves nothing behind; right input is accepted."""

from typing import Any

import pytest
from wrong_inputs import BAD, GOOD, in_one_process


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    return in_one_process()


def test_every_bad_input_is_refused_in_a_few_lines_without_torch(outcomes: dict[str, Any]) -> None:
    bad = outcomes["bad"]
    assert len(bad) == sum(map(len, BAD.values())) >= 100
    assert [f"{one['arguments']}: {one['problem']}" for one in bad if one["problem"]] == []


def test_no_good_input_is_refused(outcomes: dict[str, Any]) -> None:
    good = outcomes["good"]
    assert len(good) == len(GOOD) >= 40
    refused = {one["arguments"]: one["errors"] for one in good if one["code"] != 0 or one["torch"]}
    assert refused == {}
