"""Read the methods of a LightningModule, and the metrics that it logs, from its source."""

import ast
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from project.config.source_index import LIBRARIES, bases_of, find_origin, statements


class LoggedMetrics(NamedTuple):
    """Metrics that a LightningModule logs, read from the source of its class and base classes.

    Args:
        methods: methods that log a metric, by its name.
        complete: true if the source shows all names.
    """

    methods: Mapping[str, frozenset[str]]
    complete: bool


def methods_of(target: str) -> frozenset[str] | None:
    """Return the methods that a class and its base classes define, up to classes of libraries.

    Returns:
        The names; None if the source of a class is not found, or assigns attributes in other ways.
    """
    found: set[str] = set()
    for node in _classes(target):
        if node is None:
            return None
        for one in node.body:
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(one.name)
            elif isinstance(one, ast.Assign):
                found |= {name.id for name in one.targets if isinstance(name, ast.Name)}
    return frozenset(found)


def logged_metrics(target: str) -> LoggedMetrics:
    """Return the literal names in `self.log("name", …)` and `self.log_dict({"name": …})` of a class.

    The names are incomplete if one is not a literal, if a class is not found, or if `self` is passed on.
    """
    methods: dict[str, set[str]] = {}
    complete = True
    for node in _classes(target):
        if node is None:
            complete = False
            continue
        for method in node.body:
            if not isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for call in (one for one in ast.walk(method) if isinstance(one, ast.Call)):
                names = _logged_by(call)
                complete &= names is not None and not _passes_self(call)
                for name in names or ():
                    methods.setdefault(name, set()).add(method.name)
    return LoggedMetrics({name: frozenset(where) for name, where in methods.items()}, complete)


def _classes(target: str) -> Iterator[ast.ClassDef | None]:
    """Yield the definitions of a class and its base classes but those of libraries; None if not found."""
    waiting, seen = [target], set[str]()
    while waiting:
        current = waiting.pop(0)
        if current in seen or current.startswith((*LIBRARIES, "abc.", "typing.", "builtins.")):
            continue
        seen.add(current)
        module, _, name = current.rpartition(".")
        origin = find_origin(module, name) if module else None
        nodes = statements(origin.module) if origin is not None else ()
        found = [one for one in nodes if isinstance(one, ast.ClassDef) and one.name == name]
        yield found[0] if found else None
        if found:
            waiting += bases_of(current)


def _logged_by(call: ast.Call) -> list[str] | None:
    """Return the names that a call logs; None if it logs others."""
    function = call.func
    if not isinstance(function, ast.Attribute) or function.attr not in ("log", "log_dict"):
        return []
    if not isinstance(function.value, ast.Name) or function.value.id != "self":
        return []
    named = [one.value for one in call.keywords if one.arg in ("name", "dictionary")]
    (first, *_) = [*call.args, *named, None]
    keys = first.keys if function.attr == "log_dict" and isinstance(first, ast.Dict) else [first]
    names = [one.value for one in keys if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    return names if len(names) == len(keys) else None


def _passes_self(call: ast.Call) -> bool:
    """Return True if a call gets `self` as an argument, and may thus log for it."""
    known = isinstance(call.func, ast.Name) and call.func.id in (
        "isinstance",
        "type",
        "getattr",
        "hasattr",
        "super",
    )
    return not known and any(isinstance(one, ast.Name) and one.id == "self" for one in call.args)
