"""Texts for people: percentages, mistakes, names of devices."""

import pytest

from project.runtime.devices import available_cpus, cpu_name, device_name
from project.runtime.text import mistake_text, percent


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        *(
            (0.0, "0 %"),
            (1.0, "100 %"),
            (0.973, "97 %"),
            (0.5, "50 %"),
            (0.9962, "99.6 %"),
            (0.0044, "0.4 %"),
        ),
        *((0.99999, "> 99.9 %"), (1e-9, "< 0.1 %")),
    ],
)
def test_a_percentage_is_0_or_100_only_if_the_probability_is(fraction: float, text: str) -> None:
    assert percent(fraction).replace("\N{NO-BREAK SPACE}", " ") == text


def test_a_mistake_has_one_form() -> None:
    assert mistake_text("3", "2", 0.97) == "3 → 2 (97\N{NO-BREAK SPACE}%)"
    assert mistake_text("cat", "dog", None) == "cat → dog"


def test_the_name_of_the_cpu_is_known() -> None:
    assert device_name("cpu").startswith(f"{cpu_name()}, {available_cpus()} CPU")
    assert cpu_name()
    assert device_name("mps") == "mps"
