"""Single values: of the right type, in their range, one of the allowed words."""

import math
from collections.abc import Mapping
from typing import Any

from project.config.validation import value_types
from project.config.validation.rules import (
    ABOVE_0,
    BELOW_1,
    CHOICES,
    FREE_TYPES,
    INSTEAD_OF_NULL,
    LENGTHS,
    NULL_TOO,
    RANGES,
)
from project.runtime.text import did_you_mean


def find_problem(key: str, value: Any, declared: Mapping[str, Any], *, judged: bool = True) -> str:
    """Say what is wrong with a value by itself; an empty string if nothing is.

    Args:
        key: dotted.
        value: resolved.
        declared: the values in the YAML files, by key.
        judged: the name of the key says what its value may be; else the YAML file alone does.
    """
    if not judged:
        return _wrong_type(key, value, declared)
    return (
        _wrong_type(key, value, declared)
        or value_types.find_problem(key, value)
        or _wrong_length(key, value)
        or _out_of_range(key, value, declared)
        or _no_choice(key, value)
    )


def _wrong_type(key: str, value: Any, declared: Mapping[str, Any]) -> str:
    if problem := _value_and_group(key, value, declared):
        return problem
    default = declared.get(key)
    if default is None and value is not None:
        default = INSTEAD_OF_NULL.get(key)
    if default is None or (isinstance(default, str) and ("${" in default or default == "???")):
        return ""
    if value is None:
        return _null_not_allowed(key, default)
    expected = type_name(default)
    if isinstance(default, list) and isinstance(value, list) and len(default):
        strangers = [entry for entry in value if not _fits(type_name(default[0]), entry)]
        if strangers:
            wanted = f"{type_name(default[0])} is needed, as in {key}={_shown(default)}"
            return f"{key}={value}: {strangers[0]} is {type_name(strangers[0])}, but {wanted}"
    if key in FREE_TYPES or _fits(expected, value):
        return ""
    return f"{key}={value}: {type_name(value)}, but {expected} is needed, as in {key}={_shown(default)}"


def _value_and_group(key: str, value: Any, declared: Mapping[str, Any]) -> str:
    """A value in the place of a group of keys, or the other way round."""
    if "." in key and any(other.startswith(f"{key}.") for other in declared) and value != {}:
        without = f"; leave it out with '~{key}'" if key.startswith(("callbacks.", "logger.")) else ""
        return f"{key}={_shown(value)}: {type_name(value)}, but a group of keys is needed{without}"
    parent = key.rpartition(".")[0]
    while parent:
        default = declared.get(parent) if declared.get(parent) is not None else INSTEAD_OF_NULL.get(parent)
        if default is not None and not isinstance(default, dict) and parent not in GROUPS_TOO:
            return (
                f"{parent}: a group of keys, but {type_name(default)} is needed, as in "
                f"{parent}={_shown(default)}"
            )
        parent = parent.rpartition(".")[0]
    return ""


GROUPS_TOO = frozenset({"trainer.strategy", "trainer.max_time"})
"""Keys of values that may be groups of keys too."""


def _fits(expected: str, value: Any) -> bool:
    """Whether a value is of the type called `expected`; a whole number is a number too."""
    found = type_name(value)
    return found == expected or (expected, found) == ("a number", "a whole number")


def _null_not_allowed(key: str, default: Any) -> str:
    if key == "trainer.max_epochs":
        return "trainer.max_epochs=null: write -1 for no limit"
    if key in FREE_TYPES or key in NULL_TOO:
        return ""
    return f"{key}=null: {type_name(default)} is needed, as in {key}={_shown(default)}"


def type_name(value: Any) -> str:
    """What kind of value this is, for users."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        return "a whole number"
    if isinstance(value, float):
        return "a number"
    if isinstance(value, list):
        return "a list"
    return "a group of keys" if isinstance(value, dict) else "a word"


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).replace(" ", "") if isinstance(value, list) else str(value)


def _wrong_length(key: str, value: Any) -> str:
    if key not in LENGTHS or not isinstance(value, list) or len(value) == LENGTHS[key]:
        return ""
    if key == "data.input_shape":
        return f"{key}={value}: give [channels,height,width]"
    return f"{key}={value}: {LENGTHS[key]} values are needed"


def _out_of_range(key: str, value: Any, declared: Mapping[str, Any]) -> str:
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        if math.isnan(number) or (math.isinf(number) and key in declared and declared[key] != number):
            if key in RANGES and RANGES[key][1] < math.inf:
                return f"{key}={value}: must be {_range(*RANGES[key])}"
            return f"{key}={value}: a finite number is needed"
        if key in RANGES and not RANGES[key][0] <= number <= RANGES[key][1]:
            return f"{key}={value}: must be {_range(*RANGES[key])}"
    if key == "trainer.max_epochs" and value == 0:
        return "trainer.max_epochs=0: nothing to train; choose at least 1, or -1 for no limit"
    if key == "trainer.max_steps" and value == 0:
        return "trainer.max_steps=0: nothing to train; choose at least 1, or -1 for no limit"
    return ""


def _range(lowest: float, highest: float) -> str:
    above = "above 0" if lowest == ABOVE_0 else f"at least {lowest}"
    if highest == BELOW_1:
        return f"{above} and below 1"
    return above if math.isinf(highest) else f"{above} and at most {highest}"


def _no_choice(key: str, value: Any) -> str:
    if key not in CHOICES or value is None or str(value) in CHOICES[key]:
        return ""
    return f"{key}={value}: {did_you_mean(str(value), CHOICES[key])}"
