"""Options of launchers and sweepers, checked against the annotations of their constructors."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from inspect import signature
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from project.errors import InputError
from project.runtime.text import did_you_mean


class AtLeast(NamedTuple):
    """Smallest value of a number.

    Args:
        value: limit.
        is_included: the limit itself is allowed.
    """

    value: float
    is_included: bool = True


Count = Annotated[int, AtLeast(1)]
NonNegative = Annotated[float, AtLeast(0)]
Positive = Annotated[float, AtLeast(0, is_included=False)]
TOP_KEYS = ("seeds", "folds")
"""Options that users set at the top of the configuration."""
NAMES = {int: "a whole number", float: "a number", bool: "true or false", NoneType: "null", str: "a text"}

Constructor = TypeVar("Constructor", bound=Callable[..., None])


def checked_options(parent: str) -> Callable[[Constructor], Constructor]:
    """Return a decorator that makes a constructor refuse values outside its annotations.

    A whole number in the place of a text becomes a text: names of accounts and studies may be digits.

    Args:
        parent: key of the options in the configuration, such as `hydra.launcher`.
    """

    def decorate(constructor: Constructor) -> Constructor:
        @wraps(constructor)
        def checked(*args: Any, **options: Any) -> None:
            hints = get_type_hints(constructor, include_extras=True)
            given = signature(constructor).bind(*args, **options)
            for name, value in given.arguments.items():
                if name not in hints or _fits(value, hints[name]):
                    continue
                if type(value) is int and _fits(str(value), hints[name]):
                    given.arguments[name] = str(value)
                    continue
                key = name if name in TOP_KEYS else f"{parent}.{name}"
                raise InputError(f"{key}={value}: {_remedy(value, hints[name])}")
            constructor(*given.args, **given.kwargs)

        return checked  # type: ignore[return-value]

    return decorate


def _fits(value: Any, hint: Any) -> bool:
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is Annotated:
        least = inner[1]
        return _fits(value, inner[0]) and (value >= least.value if least.is_included else value > least.value)
    if kind is Literal:
        return value in inner
    if kind is Mapping:
        return isinstance(value, Mapping) and all(_fits(one, inner[1]) for one in value.values())
    if kind is Sequence:
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        return is_list and all(_fits(one, inner[0]) for one in value)
    if hint is Any or isinstance(value, bool):
        return hint in (Any, bool)
    if hint is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, hint)


def _remedy(value: Any, hint: Any) -> str:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if all(get_origin(one) is Literal for one in kinds):
        return did_you_mean(str(value), [str(choice) for one in kinds for choice in get_args(one)])
    *most, last = [_name(one) for one in kinds]
    return f"give {', '.join(most)}, or {last}" if most else f"give {last}"


def _name(hint: Any) -> str:
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return f"{_name(inner[0])} {'from' if inner[1].is_included else 'above'} {inner[1].value:g}"
    if kind is Literal:
        return " or ".join(map(str, inner))
    if kind is Mapping:
        return "a group of keys" + ("" if inner[1] is Any else f" with {_name(inner[1])} each")
    if kind is Sequence:
        return "a list such as [0,1]" if inner[0] is int else "a list of texts"
    return NAMES[hint]
