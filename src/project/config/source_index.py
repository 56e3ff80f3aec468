"""Where a dotted name is defined, read off the source files: nothing is imported."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Literal, NamedTuple

MARK = "CONFIG_TARGETS"


class Origin(NamedTuple):
    """Where something is defined.

    Args:
        module: full name.
        name: in it.
        kind: of thing.
    """

    module: str
    name: str
    kind: Literal["class", "function"]


@cache
def find_origin(module: str, name: str) -> Origin | None:
    """Find where a class or function is defined, through imports of the same top-level package.

    Args:
        module: the one that it is asked of.
        name: there.

    Returns:
        None if there is no such module or name, or if it is something else: a module, a value, or a thing of
        another package.
    """
    return _find(module, name, set())


@cache
def public_names(module: str) -> list[str]:
    """Names of classes and functions that a module defines or imports one by one."""
    names = [node.name for node in _statements(module) if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    for _, names_in_it in _imports(module):
        names += names_in_it
    return sorted({name for name in names if not name.startswith("_")})


@cache
def marked_names(module: str) -> frozenset[str]:
    """Names that a module lists in its `CONFIG_TARGETS`, as plain words."""
    if MARK not in (text_of(module) or ""):
        return frozenset()
    for node in _statements(module):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == MARK for target in targets):
            assert isinstance(node, ast.Assign)
            if isinstance(node.value, ast.Tuple | ast.List):
                entries = [entry.value for entry in node.value.elts if isinstance(entry, ast.Constant)]
                return frozenset(entry for entry in entries if isinstance(entry, str))
    return frozenset()


def _find(module: str, name: str, seen: set[str]) -> Origin | None:
    if module in seen or (text := text_of(module)) is None:
        return None
    seen.add(module)
    if found := re.search(rf"^(class|def)\s+{re.escape(name)}\b", text, re.MULTILINE):
        return Origin(module, name, "class" if found[1] == "class" else "function")
    for node in _statements(module):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return Origin(module, name, "class" if isinstance(node, ast.ClassDef) else "function")
    for other, pairs in _imports(module):
        if other.partition(".")[0] != module.partition(".")[0]:
            continue
        wanted = pairs.get(name, name if "*" in pairs and not name.startswith("_") else None)
        if wanted and (origin := _find(other, wanted, seen if "*" in pairs else set(seen))):
            return origin
    return None


def _imports(module: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Modules that a module imports from: what it calls the things, and what they are called there."""
    spec = _spec(module)
    package = module if spec and spec.submodule_search_locations else module.rpartition(".")[0]
    for node in _statements(module):
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            other = ".".join([*above, *([node.module] if node.module else [])])
            yield other, {alias.asname or alias.name: alias.name for alias in node.names}


def _statements(module: str) -> Iterator[ast.stmt]:
    """Statements of a module, those below `if` and `try` among them."""
    waiting = list(_tree(module).body)
    while waiting:
        node = waiting.pop(0)
        yield node
        for field in ("body", "orelse", "finalbody") if isinstance(node, ast.If | ast.Try) else ():
            waiting += getattr(node, field, [])
        for handler in node.handlers if isinstance(node, ast.Try) else ():
            waiting += handler.body


@cache
def _tree(module: str) -> ast.Module:
    try:
        return ast.parse(text_of(module) or "")
    except SyntaxError:
        return ast.Module([], [])


@cache
def text_of(module: str) -> str | None:
    """Read a module's source; None where there is none."""
    spec = _spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        return Path(spec.origin).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


@cache
def _spec(module: str) -> ModuleSpec | None:
    """What Python would import, found without importing the packages around it."""
    top, *below = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    name = top
    for part in below:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return spec
