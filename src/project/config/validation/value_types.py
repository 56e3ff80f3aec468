"""Values that may have several types: what each of them may look like."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from project.runtime.text import LONGEST_NAME, name_length


def find_problem(key: str, value: Any) -> str:
    """Say what is wrong with a value of several possible types; an empty string if nothing is."""
    return CHECKS[key](key, value) if key in CHECKS else ""


def _devices(key: str, value: Any) -> str:
    wanted = "choose a number from 1, a list such as [0,1], or auto for all"
    if isinstance(value, bool) or value is None or isinstance(value, float):
        return f"{key}={value}: {wanted}"
    if isinstance(value, int):
        return "" if value >= 1 or value == -1 else f"{key}={value}: {wanted}"
    if isinstance(value, str):
        listed = re.fullmatch(r"\d+(,\d+)*,?", value)
        if value in ("auto", "-1") or (listed and value.rstrip(",") != "0"):
            return ""
        return f"{key}={value}: {wanted}"
    if not value or not all(type(one) is int and one >= 0 for one in value):
        return f"{key}={value}: {wanted}"
    if len(set(value)) < len(value):
        return f"{key}={value}: names a device twice; {wanted}"
    return ""


def _batches(key: str, value: Any) -> str:
    """A number of batches, or a fraction of all."""
    some = key in ("trainer.limit_train_batches", "trainer.val_check_interval")
    lowest = "above 0" if some else "from 0"
    wanted = f"give a whole number of batches, or a fraction {lowest} to 1.0"
    if value is None and key == "trainer.val_check_interval":
        return ""
    if isinstance(value, str) and key == "trainer.val_check_interval" and DURATION.fullmatch(value):
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{key}={value}: {wanted}"
    if value < 0 or (value == 0 and some):
        return f"{key}={value}: {wanted}"
    return f"{key}={value}: {wanted}" if value > 1 and value % 1 else ""


DURATION = re.compile(r"\d+:\d\d:\d\d:\d\d")


def _duration(key: str, value: Any) -> str:
    if value is None or isinstance(value, dict) or (isinstance(value, str) and DURATION.fullmatch(value)):
        return ""
    return f"{key}={value}: give days:hours:minutes:seconds, as in {key}=00:01:30:00"


def _amount(key: str, value: Any) -> str:
    if type(value) in (int, float) and 0 <= value < math.inf:
        return ""
    return f"{key}={value}: give a number from 0"


def _images(key: str, value: Any) -> str:
    """A number of images, or a fraction of all."""
    wanted = "give a whole number of images, or a fraction below 1"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{key}={value}: {wanted}"
    return f"{key}={value}: {wanted}" if isinstance(value, float) and value >= 1 else ""


def _name(key: str, value: Any) -> str:
    text = str(value)
    parts = PurePath(text).parts
    if isinstance(value, list | dict | bool) or value is None:
        given = "null" if value is None else value
        return f"{key}={given}: a word is needed; run folders bear it"
    if (
        not text.strip()
        or not text.isprintable()
        or PurePath(text).is_absolute()
        or ".." in parts
        or not parts
    ):
        return (
            f"{key}={text!r}: names the folder of runs below paths.outputs; give a word, and the place by "
            "paths.outputs"
        )
    if (length := name_length(text)) > LONGEST_NAME:
        return f"{key}={text}: too long for a folder (at most {LONGEST_NAME} bytes, got {length}); shorten it"
    return ""


def _folds(key: str, value: Any) -> str:
    if value is None or type(value) is int:
        return ""
    from project.config.validation.values import type_name

    return f"{key}={value}: {type_name(value)}, but a whole number is needed, as in {key}=5"


CHECKS: Mapping[str, Callable[[str, Any], str]] = {
    "trainer.devices": _devices,
    "trainer.limit_train_batches": _batches,
    "trainer.limit_val_batches": _batches,
    "trainer.limit_test_batches": _batches,
    "trainer.overfit_batches": _batches,
    "trainer.val_check_interval": _batches,
    "trainer.max_time": _duration,
    **{f"trainer.max_time.{unit}": _amount for unit in ("weeks", "days", "hours", "minutes", "seconds")},
    "data.val_size": _images,
    "data.test_size": _images,
    "data.folds": _folds,
    "name": _name,
}
