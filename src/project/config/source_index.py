"""Read definitions and signatures from source files, without importing them."""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, Literal, NamedTuple

MARK = "CONFIG_TARGETS"
"""Name of a module's tuple of classes and functions that a `_target_` may name."""
COMPLETE = ("project", "torch", "lightning", "torchvision", "torchmetrics")
"""Packages whose sources list every name they define, so that a missing name is an error."""
LIBRARIES = ("torch.", "torchvision.", "lightning.", "pytorch_lightning.", "torchmetrics.")
"""Prefixes of the dotted names of libraries' classes."""
INSTALLED = ("site-packages", "dist-packages")
"""Names of folders of installed packages."""
MAX_DEPTH = 12
"""Maximum number of steps from a class to a base class, or through imports."""
UNKNOWN = object()
"""Default of an argument without a default, or whose default is not a literal."""


class Origin(NamedTuple):
    """Module and name of a definition.

    Args:
        module: dotted name of the module.
        name: name in the module.
        kind: kind of definition.
    """

    module: str
    name: str
    kind: Literal["class", "function"]


class Missing(NamedTuple):
    """Target that certainly does not exist.

    Args:
        name: missing part of the dotted name.
        where: module or package that lacks `name`.
        known: names that exist in `where`.
    """

    name: str
    where: str
    known: tuple[str, ...]


@cache
def find_origin(module: str, name: str) -> Origin | None:
    """Find where a class or function is defined, through imports of the same top-level package.

    Args:
        module: module that defines or imports the name.
        name: name in the module.

    Returns:
        The origin. None if the module or name does not exist, or the name is a module, a value, or an object
        of another package.
    """
    return _find(module, name, set())


@cache
def public_names(module: str) -> list[str]:
    """Return the public names that a module defines as class or function, or imports by name."""
    names = [node.name for node in statements(module) if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    for other, imported in _imports(module):
        is_own = other != module and other.partition(".")[0] == module.partition(".")[0]
        names += public_names(other) if "*" in imported and is_own else imported
    return sorted({name for name in names if not name.startswith("_")})


@cache
def marked_names(module: str) -> frozenset[str]:
    """Return the names that a module lists in its `CONFIG_TARGETS`."""
    entries = module_constant(module, MARK)
    return frozenset(filter(_is_text, entries)) if isinstance(entries, tuple | list) else frozenset()


def module_constant(module: str, name: str) -> Any:
    """Return the plain value that a module assigns to a name; `UNKNOWN` for none, or one that needs a run."""
    return _constant(text_of(module) or "", name)


def find_missing(target: str) -> Missing | None:
    """Return the part of a dotted name that does not exist; None where that is not certain.

    A top-level package that is not installed has an empty `where`, and no known names.
    """
    module, _, name = target.rpartition(".")
    top, *parts = module.split(".")
    if _spec(top) is None:
        return Missing(top, "", ())
    for count, part in enumerate(parts):
        package = ".".join([top, *parts[:count]])
        spec = _spec(package)
        if _spec(f"{package}.{part}") is None:
            if part[:1].isupper() or spec is None:  # a class, of which the target is an attribute
                return None
            folders = spec.submodule_search_locations or ()
            modules = [file for folder in folders for file in Path(folder).glob("*.py")]
            packages = [file.parent for folder in folders for file in Path(folder).glob("*/__init__.py")]
            known = tuple(sorted(path.stem for path in (*modules, *packages) if path.stem != "__init__"))
            return Missing(part, package, known)
    text = text_of(module)
    if text is None or re.search(rf"import \*|__getattr__|\b{re.escape(name)}\b", text):
        return None
    found = re.findall(r"^(?:class|def) ([A-Za-z]\w*)|^from .* import ([A-Z]\w*)", text, re.MULTILINE)
    return Missing(name, module, tuple(one or other for one, other in found))


def bases_of(target: str) -> list[str]:
    """Return the base classes of a class as dotted names; empty if the source does not name them."""
    module, _, name = target.rpartition(".")
    if (origin := find_origin(module, name)) is None or origin.kind != "class":
        return []
    text = text_of(origin.module) or ""
    body = class_body(text, origin.name)
    header = body[: body.index(":\n")] if ":\n" in body else body.partition(":")[0]
    inside = re.search(r"\((.*)\)", header, re.DOTALL)
    names = re.sub(r"\[[^\]]*\]", "", inside[1]).split(",") if inside else []
    plain = [name.strip() for name in names if name.strip() and "=" not in name]
    return [_absolute(name, origin.module) for name in plain]


def inherits(target: str, base: str) -> bool:
    """Return True if the sources show that a class is `base` or derives from it, in any number of steps."""
    waiting = [target]
    for _ in range(MAX_DEPTH):
        if not waiting:
            break
        if (current := waiting.pop(0)) == base:
            return True
        if not current.startswith(LIBRARIES):
            waiting += bases_of(current)
    return False


@cache
def constant_of(target: str, name: str) -> Any:
    """Return the plain value of an attribute of a class or its base classes; None if there is none."""
    waiting = [target]
    for _ in range(MAX_DEPTH):
        if not waiting:
            break
        module, _, attribute = (current := waiting.pop(0)).rpartition(".")
        if (origin := find_origin(module, attribute)) is not None:
            body = class_body(text_of(origin.module) or "", origin.name)
            if (found := _constant(body, name, indent="    ")) is not UNKNOWN:
                return found
            waiting += bases_of(current)
    return None


def source_of(target: str) -> str:
    """Return the source of the module that defines a target; empty if not found."""
    module, _, name = target.rpartition(".")
    origin = find_origin(module, name)
    return (text_of(origin.module) or "") if origin is not None else ""


def with_own_imports(packages: Iterable[str]) -> list[str]:
    """Return packages, and the packages beside them that their sources import, in any number of steps.

    A package is beside another if the same folder contains both, as in one repository; those of the
    interpreter's own folders (`site-packages`) are not followed. Imports are read from the sources.
    """
    found: set[str] = set()
    waiting = list(packages)
    while waiting:
        if (package := waiting.pop()) in found:
            continue
        found.add(package)
        folder, files = source_files(package)
        if folder.name not in INSTALLED:
            waiting += [name for name in _imported_packages(files) if source_files(name)[0] == folder]
    return sorted(found)


def _imported_packages(files: Iterable[Path]) -> set[str]:
    """Return the top-level packages that source files import by absolute names, in functions too."""
    names: set[str] = set()
    for file in files:
        with suppress(OSError, SyntaxError, ValueError):
            for node in ast.walk(ast.parse(file.read_bytes())):
                if isinstance(node, ast.Import):
                    names |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names


def source_files(package: str) -> tuple[Path, list[Path]]:
    """Return the folder that contains a top-level package or module, and its source files."""
    spec = _spec(package)
    if spec is None:
        return Path(), []
    if folders := list(spec.submodule_search_locations or ()):
        return Path(folders[0]).parent, [file for one in folders for file in Path(one).rglob("*.py")]
    file = Path(str(spec.origin))
    return file.parent, [file] if file.suffix == ".py" else []


@cache
def text_of(module: str) -> str | None:
    """Return the source of a module; None if not found."""
    spec = _spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        return Path(spec.origin).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def statements(module: str) -> Iterator[ast.stmt]:
    """Yield the top-level statements of a module, including those in `if` and `try` blocks."""
    waiting = list(_tree(module).body)
    while waiting:
        node = waiting.pop(0)
        yield node
        for field in ("body", "orelse", "finalbody") if isinstance(node, ast.If | ast.Try) else ():
            waiting += getattr(node, field, [])
        for handler in node.handlers if isinstance(node, ast.Try) else ():
            waiting += handler.body


def class_body(text: str, name: str) -> str:
    """Return the source of a class."""
    head = re.search(rf"^class {re.escape(name)}\b", text, re.MULTILINE)
    body = text[head.start() :] if head else ""
    end = re.search(r"\n(?=[^\s#)\]}])", body)
    return body[: end.start()] if end else body


def imported_from(module: str, name: str) -> str | None:
    """Return the dotted name that a module's import statements bind to a name."""
    for node in statements(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if name == (alias.asname or alias.name.partition(".")[0]):
                    return alias.name if alias.asname else name
    for other, pairs in _imports(module):
        if name in pairs:
            return f"{other}.{pairs[name]}"
    return None


def resolve_alias(name: str, module: str) -> ast.expr | None:
    """Return the expression assigned to a name in a module, or in the module that it is imported from.

    Aliases in libraries are not followed: `validation.values` declares the arguments of their classes.
    """
    for _ in range(MAX_DEPTH):
        if f"{module}.".startswith(LIBRARIES) or module.partition(".")[0] in sys.stdlib_module_names:
            return None
        if (found := _assigned(text_of(module) or "", name)) is not None:
            return found
        if (origin := imported_from(module, name)) is None:
            return None
        module, _, name = origin.rpartition(".")
    return None


def plain_value(expression: ast.expr | None) -> Any:
    """Return the value of an expression of literals; `UNKNOWN` for any other."""
    try:
        return UNKNOWN if expression is None else ast.literal_eval(expression)
    except (ValueError, TypeError):
        return UNKNOWN


def _find(module: str, name: str, seen: set[str]) -> Origin | None:
    if module in seen or (text := text_of(module)) is None:
        return None
    seen.add(module)
    if found := re.search(rf"^(class|def)\s+{re.escape(name)}\b", text, re.MULTILINE):
        return Origin(module, name, "class" if found[1] == "class" else "function")
    for node in statements(module):
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
    """Yield each module of a `from` import, with a dict from local names to names in that module."""
    for node in statements(module):
        if isinstance(node, ast.ImportFrom):
            other = _absolute_module(module, "." * node.level + (node.module or ""))
            yield other, {alias.asname or alias.name: alias.name for alias in node.names}


def _absolute_module(module: str, name: str) -> str:
    """Return the absolute name of a module that `module` imports by a relative name."""
    level = len(name) - len(name.lstrip("."))
    if not level:
        return name
    spec = _spec(module)
    is_package = spec is not None and spec.submodule_search_locations is not None
    parts = module.split(".")
    kept = parts[: len(parts) - level + is_package]
    return ".".join([*kept, *filter(None, [name.lstrip(".")])])


@cache
def _tree(module: str) -> ast.Module:
    try:
        return ast.parse(text_of(module) or "")
    except SyntaxError:
        return ast.Module([], [])


@cache
def _spec(module: str) -> ModuleSpec | None:
    """Return the spec of the module that Python would import, without importing its parent packages."""
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


def _absolute(name: str, module: str) -> str:
    """Return the dotted name of an object that a module calls `name`."""
    first, _, rest = name.partition(".")
    found = imported_from(module, first) or f"{module}.{first}"
    return f"{found}.{rest}" if rest else found


def _assigned(text: str, name: str, indent: str = "") -> ast.expr | None:
    """Return the expression assigned to a name after the given indentation; None if there is none."""
    start = re.search(rf"^{indent}{re.escape(name)}(?::[^=\n]+)? = ", text, re.MULTILINE)
    lines = text[start.end() :].split("\n") if start else []
    for count in range(1, min(len(lines), 60) + 1):
        with suppress(SyntaxError):
            return ast.parse("\n".join(lines[:count]).strip(), mode="eval").body
    return None


def _constant(text: str, name: str, indent: str = "") -> Any:
    """Return the plain value assigned to a name; `UNKNOWN` if there is none."""
    return plain_value(_assigned(text, name, indent))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
