"""Read the signatures of classes and functions from source files, without importing them."""

import ast
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from project.config.source_index import (
    COMPLETE,
    MAX_DEPTH,
    UNKNOWN,
    Missing,
    bases_of,
    class_body,
    find_missing,
    find_origin,
    plain_value,
    resolve_alias,
    text_of,
)
from project.runtime.bounds import Kind, Spec, parse


class Argument(NamedTuple):
    """Argument of a class or function.

    Args:
        owner: dotted name of the class or function that declares the argument.
        spec: values that the annotation allows.
        required: true if the argument has no default.
        by_name: true for a keyword-only argument.
        default: default as a plain value, or `UNKNOWN`.
    """

    owner: str
    spec: Spec
    required: bool
    by_name: bool
    default: Any = UNKNOWN


class Signature(NamedTuple):
    """Arguments of a class or function.

    Args:
        arguments: arguments by name, including inherited ones, without `self`.
        anything: true if other names are accepted too, as by `**kwargs`.
    """

    arguments: Mapping[str, Argument]
    anything: bool

    def required(self, *, by_name: bool) -> tuple[str, ...]:
        """Return the names of the required arguments: keyword-only or positional ones."""
        return tuple(name for name, one in self.arguments.items() if one.required and one.by_name == by_name)

    @property
    def defaults(self) -> dict[str, Any]:
        """Defaults that are plain values, by argument name."""
        known = {name: one.default for name, one in self.arguments.items()}
        return {name: default for name, default in known.items() if default is not UNKNOWN}


@cache
def signature_of(target: str) -> Signature | Missing | None:
    """Read the signature of a class or function from its source.

    Args:
        target: dotted name, as in `_target_`.

    Returns:
        The signature; `Missing` for a target that does not exist; None if the source is not conclusive.
    """
    try:
        return _signature(target, MAX_DEPTH)
    except (SyntaxError, RecursionError):
        return None


def _signature(target: str, depth: int) -> Signature | Missing | None:
    module, _, name = target.rpartition(".")
    if not depth or not module:
        return None
    if (origin := find_origin(module, name)) is None:
        return find_missing(target) if module.partition(".")[0] in COMPLETE else None
    text = text_of(origin.module) or ""
    if origin.kind == "function":
        start = re.search(rf"^(?:async )?def {name}\(", text, re.MULTILINE)
        return _signature_at(text, start.start(), f"{origin.module}.{name}", origin.module) if start else None
    body = class_body(text, origin.name)
    constructor = re.search(r"^    def __init__\(", body, re.MULTILINE)
    if constructor is None:
        if maker := re.search(r"^    def __new__\(", body, re.MULTILINE):
            return _signature_at(body, maker.start(), f"{origin.module}.{origin.name}", origin.module)
        return None if _is_decorated(text, origin.name) else _inherited(bases_of(target), depth)
    own = _signature_at(body, constructor.start(), f"{origin.module}.{origin.name}", origin.module)
    if own is None or not own.anything:
        return own
    call = re.search(r"super\(\).__init__\(([^)]*)\)", body[constructor.start() :])
    if call is None or "**" not in call[1]:  # the options are not passed to the base class
        return own
    more = _inherited(bases_of(target), depth)
    if more is None:
        return own
    given = _passed_on(call[1], list(more.arguments))
    inherited = {
        name: one._replace(by_name=True)
        for name, one in more.arguments.items()
        if name not in given and name not in own.arguments
    }
    return Signature({**own.arguments, **inherited}, more.anything)


def _is_decorated(text: str, name: str) -> bool:
    return re.search(rf"^@[^\n]*\nclass {re.escape(name)}\b", text, re.MULTILINE) is not None


def _inherited(bases: Sequence[str], depth: int) -> Signature | None:
    """Return the signature that a class without constructor inherits from its base classes.

    A base class without arguments is a mixin: the constructor is that of the next one.
    """
    without = Signature({}, anything=False)
    for base in bases:
        if base.rpartition(".")[2] not in ("object", "ABC", "Generic", "Protocol"):
            found = _signature(base, depth - 1)
            if found != without:
                return found if isinstance(found, Signature) else None
    return without


def _signature_at(text: str, start: int, owner: str, module: str) -> Signature | None:
    """Return the signature of the function definition at position `start`."""
    end = re.compile(r"\)[^\n:]*:")  # of the header, or of an argument whose default has parentheses
    position = start
    while header := end.search(text, position):
        position = header.end()
        try:
            parsed = ast.parse(f"{text[start:position].strip()} pass")
        except SyntaxError:
            continue
        function = parsed.body[0]
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        return _signature_of_arguments(function.args, owner, module)
    return None


def _signature_of_arguments(arguments: ast.arguments, owner: str, module: str) -> Signature:
    positional = [*arguments.posonlyargs, *arguments.args]
    blank: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    given = [
        *zip(positional, [*blank, *arguments.defaults], [False] * len(positional), strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, [True] * len(arguments.kwonlyargs), strict=True),
    ]
    found: dict[str, Argument] = {}
    for argument, default, by_name in given:
        value = plain_value(resolve_alias(default.id, module) if isinstance(default, ast.Name) else default)
        spec = parse(argument.annotation, lambda name: resolve_alias(name, module))
        if spec and value is None and not any(kind.name == "None" for kind in spec):
            spec = (*spec, Kind("None"))
        found[argument.arg] = Argument(owner, spec, default is None, by_name, value)
    for name in ("self", "cls"):
        found.pop(name, None)
    return Signature(found, arguments.kwarg is not None)


def _passed_on(arguments: str, names: Sequence[str]) -> set[str]:
    """Return the arguments that a constructor passes to its base class.

    For example, `super().__init__(name="mnist", **base)` passes `name`.

    Args:
        arguments: source text of the call's arguments.
        names: arguments of the base class, in order.
    """
    positional = [text for text in arguments.split(",") if text.strip() and not re.search(r"=|\*", text)]
    return {*re.findall(r"(\w+)=", arguments), *names[: len(positional)]}
