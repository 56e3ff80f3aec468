"""Options of launchers and sweepers, checked against the annotations of their constructors."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from inspect import signature
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from project.errors import InputError
from project.runtime.text import did_you_mean


class Least(NamedTuple):
    """The smallest value of a number.

    Args:
        value: that number.
        included: the value itself is allowed.
    """

    value: float
    included: bool = True


Count = Annotated[int, Least(1)]
Positive = Annotated[float, Least(0, included=False)]
Seconds = Annotated[float, Least(0)]
WITHOUT_PLACE = ("seeds", "folds")
"""Options that users give by these names alone."""

Constructor = TypeVar("Constructor", bound=Callable[..., None])


def checked_options(place: str) -> Callable[[Constructor], Constructor]:
    """Have a constructor refuse values that its annotations do not allow.

    A whole number in the place of a text becomes one: names of accounts and studies may consist of digits.

    Args:
        place: key below which users give the options, such as hydra.launcher.
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
                key = name if name in WITHOUT_PLACE else f"{place}.{name}"
                raise InputError(f"{key}={value}: {_remedy(value, hints[name])}")
            constructor(*given.args, **given.kwargs)

        return cast("Constructor", checked)

    return decorate


def _fits(value: Any, hint: Any) -> bool:
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is Annotated:
        least = inner[1]
        return _fits(value, inner[0]) and (value >= least.value if least.included else value > least.value)
    if kind is Literal:
        return value in inner
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(_fits(one, inner[1]) for one in value.values())
    if isinstance(kind, type) and issubclass(kind, Sequence):
        return (
            isinstance(value, Sequence)
            and not isinstance(value, str)
            and all(_fits(one, inner[0]) for one in value)
        )
    if hint is Any:
        return True
    if isinstance(value, bool):
        return hint is bool
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
        least = inner[1]
        return f"{_name(inner[0])} {'from' if least.included else 'above'} {least.value:g}"
    if kind is Literal:
        return " or ".join(map(str, inner))
    if isinstance(kind, type) and issubclass(kind, Mapping):
        value = "" if inner[1] is Any else f" with {_name(inner[1])} each"
        return f"a group of keys{value}"
    if isinstance(kind, type) and issubclass(kind, Sequence):
        return (
            "a list such as [0,1]" if inner[0] is int else f"a list of {_name(inner[0])}s".replace(" a ", " ")
        )
    names = {int: "a whole number", float: "a number", bool: "true or false", NoneType: "null", str: "a text"}
    return names[hint]
