"""Ranges and choices of constructor arguments, declared in the annotations of the arguments.

    widths: Annotated[Sequence[int], Range(1)]
    dropout: Annotated[float, Range(0, 1)]
    lr: Annotated[float, Range(above=0, high=1000)]
    channels: Annotated[tuple[int, int], Range(1)]
    activation: Literal["relu", "gelu"]
    resize: Annotated[int, Range(1)] | None
    val_size: Annotated[float, Range(0, below=1)] | Annotated[int, Range(0)]

The range of a sequence or mapping applies to each of its numbers. The annotations are read from the source
(`project.config.signatures`), so that a configuration is checked without importing torch.
"""

import ast
import inspect
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import OmegaConf

from project.errors import InputError


@dataclass(frozen=True)
class Range:
    """Interval of finite numbers.

    Args:
        low: lower bound, included.
        high: upper bound, included.
        above: lower bound, excluded.
        below: upper bound, excluded.
    """

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, number: float) -> bool:
        return (
            math.isfinite(number)
            and self.low <= number <= self.high
            and (number > self.above or self.above == -math.inf)
            and (number < self.below or self.below == math.inf)
        )

    def __str__(self) -> str:
        bounds = {"at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
        return " and ".join(f"{word} {bound}" for word, bound in bounds.items() if math.isfinite(bound))


@dataclass(frozen=True)
class Kind:
    """Type of value that an argument accepts.

    Args:
        name: `bool`, `int`, `float`, `str`, `list`, `dict` or `None`.
        range: range of a number, or of the numbers in a list or group.
        choices: allowed values; empty for any.
        entries: types of the entries of a list or group; empty for any.
        size: number of entries of a list; None for any.
    """

    name: str
    range: Range | None = None
    choices: tuple[Any, ...] = ()
    entries: "Spec" = ()
    size: int | None = None


TOP_KEYS = ("seeds", "folds")
"""Sweeper options that users set at the top level of the configuration."""

Spec = tuple[Kind, ...]
"""Types that an argument accepts; empty for any value."""

KIND_NAMES: Mapping[str, str] = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "list": "a list",
    "dict": "a group of keys",
    "None": "null",
}
"""Names of the types in messages."""


def kind_of(value: Any) -> str:
    """Return the type of a value as a key of `KIND_NAMES`."""
    if value is None:
        return "None"
    if isinstance(value, list | tuple):
        return "list"
    if isinstance(value, Mapping):
        return "dict"
    return next((kind.__name__ for kind in (bool, int, float) if isinstance(value, kind)), "str")


def format_value(value: Any) -> str:
    """Return a value as messages show it: strings in quotes, lists as on the command line."""
    if isinstance(value, Mapping):
        return KIND_NAMES["dict"]
    if value == "":
        return "an empty value"
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value).replace(" ", "") if isinstance(value, list) else repr(value)


def find_problem(spec: Spec, value: Any) -> str:
    """Return why a value does not fit a spec, as in `expected a number, got 'abc'`; empty if it fits."""
    found = kind_of(value)
    kinds = [kind for kind in spec if found == kind.name or (found, kind.name) == ("int", "float")]
    problems = [_problem_of(kind, value) for kind in kinds]
    if not spec or "" in problems:
        return ""
    numbers = [kind for kind in spec if kind.name in ("int", "float")]
    others = [kind for kind in spec if kind.name != "None"] or spec
    is_one_of_several = bool(kinds) and bool(kinds[0].choices) and len(others) > 1
    if kinds and len(numbers) < 2 and not is_one_of_several:
        return problems[0]
    wanted = (", or " if len(numbers) > 1 else " or ").join(
        _described(kind, with_range=len(numbers) > 1) for kind in others
    )
    return f"expected {wanted}, got {format_value(value)}"


def _described(kind: Kind, *, with_range: bool) -> str:
    if kind.choices:
        return f"{'one of ' if len(kind.choices) > 1 else ''}{', '.join(map(str, kind.choices))}"
    return f"{KIND_NAMES[kind.name]} {kind.range}" if with_range and kind.range else KIND_NAMES[kind.name]


def _problem_of(kind: Kind, value: Any) -> str:
    if kind.choices:
        wanted = f"expected {_described(kind, with_range=False)}, got {format_value(value)}"
        return "" if value in kind.choices else wanted
    if isinstance(value, list | tuple | Mapping):
        if kind.size is not None and len(value) != kind.size:
            return f"expected {kind.size} values, got {len(value)}"
        entries = value.values() if isinstance(value, Mapping) else value
        return next((text for entry in entries if (text := find_problem(kind.entries, entry))), "")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    is_open = kind.range is None or kind.range.high == kind.range.below == math.inf
    if (math.isnan(value) and is_open) or (math.isinf(value) and is_open and kind.range):
        return f"expected a finite number, got {value}"
    return f"must be {kind.range}" if kind.range and value not in kind.range else ""


Resolve = Callable[[str], ast.expr | None]
"""Function that returns the expression assigned to a module's name; None if the source has none."""

LISTS = ("Sequence", "list", "tuple", "Iterable", "List", "Tuple", "ListConfig")
GROUPS = ("Mapping", "dict", "Dict")
KINDS_BY_TYPE = {name: name for name in ("bool", "int", "float", "str")}
KINDS_BY_TYPE |= dict.fromkeys(LISTS, "list") | dict.fromkeys(GROUPS, "dict")
"""Types of `Kind` by the names of Python types without parameters."""


def check_arguments(group: str, made: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Check arguments against the annotations of their constructor, and return them as plain values.

    An integer becomes a string where a string is expected: names of accounts and studies may be digits.

    Args:
        group: key of the arguments in the configuration, such as `hydra.launcher`.
        made: class whose constructor has the annotations.
        values: arguments by name; those without an annotation are returned unchanged.

    Raises:
        InputError: a value does not fit its annotation.
    """
    (constructor,) = ast.parse(textwrap.dedent(inspect.getsource(vars(made)["__init__"]))).body
    assert isinstance(constructor, ast.FunctionDef)
    arguments = [*constructor.args.args, *constructor.args.kwonlyargs]
    specs = {argument.arg: parse(argument.annotation, lambda _: None) for argument in arguments}
    checked = {}
    for name, given in values.items():
        value = OmegaConf.to_container(given) if OmegaConf.is_config(given) else given
        if problem := find_problem(specs.get(name, ()), value):
            if type(value) is not int or find_problem(specs[name], str(value)):
                key = name if name in TOP_KEYS else f"{group}.{name}"
                raise InputError(f"{key}={value}: {problem}")
            value = str(value)
        checked[name] = value
    return checked


def parse(annotation: ast.expr | None, resolve: Resolve) -> Spec:
    """Return the spec of an annotation; empty if the annotation allows any value."""
    match annotation:
        case ast.Constant(value=None):
            return (Kind("None"),)
        case ast.Constant(value=str(text)):
            return parse(ast.parse(text, mode="eval").body, resolve)
        case ast.Name(id=name) if name in KINDS_BY_TYPE:
            return (Kind(KINDS_BY_TYPE[name]),)
        case ast.Name(id=name):
            meant = resolve(name)
            return parse(meant, resolve) if meant is not None else ()
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _union(parse(left, resolve), parse(right, resolve))
        case ast.Subscript(value=ast.Name(id=name), slice=inner):
            arguments = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return _subscripted(name, arguments, resolve)
    return ()


def _subscripted(name: str, arguments: list[ast.expr], resolve: Resolve) -> Spec:
    if name == "Annotated":
        spec = parse(arguments[0], resolve)
        ranges = [found for extra in arguments[1:] if (found := _range(extra)) is not None]
        return tuple(_bounded(kind, ranges[0]) for kind in spec) if ranges else spec
    if name == "Literal":
        return _by_kind(ast.literal_eval(argument) for argument in arguments)
    if name in ("Optional", "Union"):
        more: list[Spec] = [(Kind("None"),)] if name == "Optional" else []
        return _union(*(parse(argument, resolve) for argument in arguments), *more)
    if name in GROUPS:
        return (Kind("dict", entries=parse(arguments[-1], resolve)),)
    if name in LISTS:
        is_open = name.lower() != "tuple" or isinstance(arguments[-1], ast.Constant)  # tuple[int, ...]
        return (Kind("list", entries=parse(arguments[0], resolve), size=None if is_open else len(arguments)),)
    return ()


def _union(*specs: Spec) -> Spec:
    return tuple(kind for spec in specs for kind in spec) if all(specs) else ()


def _by_kind(choices: Iterable[Any]) -> Spec:
    words: dict[str, list[Any]] = {}
    for choice in choices:
        words.setdefault(kind_of(choice), []).append(choice)
    return tuple(Kind(kind, choices=tuple(found) if kind != "None" else ()) for kind, found in words.items())


def _bounded(kind: Kind, bounds: Range) -> Kind:
    if kind.name in ("list", "dict"):
        return replace(kind, entries=tuple(_bounded(entry, bounds) for entry in kind.entries))
    return replace(kind, range=bounds) if kind.name in ("int", "float") else kind


def _range(node: ast.expr) -> Range | None:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Range"):
        return None
    given = {str(word.arg): _number(word.value) for word in node.keywords}
    return Range(*map(_number, node.args), **given)


def _number(node: ast.expr) -> float:
    """Evaluate a number in the source, such as `1e-3` or `2**32 - 1`."""
    match node:
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _number(left) ** _number(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _number(left) - _number(right)
    found = ast.literal_eval(node)
    assert isinstance(found, int | float)
    return found
