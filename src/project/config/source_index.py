"""Read definitions and signatures from source files, without importing them."""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, Literal, NamedTuple

from project.runtime.bounds import Kind, Spec, parse

MARK = "CONFIG_TARGETS"
"""Name of a module's tuple of classes and functions that a `_target_` may name."""
COMPLETE = ("project", "torch", "lightning", "torchvision", "torchmetrics")
"""Packages whose sources list every name they define, so that a missing name is an error."""
LIBRARIES = ("torch.", "torchvision.", "lightning.", "pytorch_lightning.", "torchmetrics.")
"""Prefixes of the dotted names of libraries' classes."""
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
    names = [node.name for node in _statements(module) if isinstance(node, ast.ClassDef | ast.FunctionDef)]
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


def bases_of(target: str) -> list[str]:
    """Return the base classes of a class as dotted names; empty if the source does not name them."""
    module, _, name = target.rpartition(".")
    if (origin := find_origin(module, name)) is None or origin.kind != "class":
        return []
    text = text_of(origin.module) or ""
    body = _body_of(text, origin.name)
    header = body[: body.index(":\n")] if ":\n" in body else body.partition(":")[0]
    inside = re.search(r"\((.*)\)", header, re.DOTALL)
    names = re.sub(r"\[[^\]]*\]", "", inside[1]).split(",") if inside else []
    plain = [name.strip() for name in names if name.strip() and "=" not in name]
    return [_absolute(name, origin.module) for name in plain]


def inherits(target: str, base: str) -> bool:
    """Return true if the sources show that a class is `base` or derives from it, in any number of steps."""
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
            body = _body_of(text_of(origin.module) or "", origin.name)
            if (found := _constant(body, name, indent="    ")) is not UNKNOWN:
                return found
            waiting += bases_of(current)
    return None


def source_of(target: str) -> str:
    """Return the source of the module that defines a target; empty if not found."""
    module, _, name = target.rpartition(".")
    origin = find_origin(module, name)
    return (text_of(origin.module) or "") if origin is not None else ""


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
    """Yield each module of a `from` import, with a dict from local names to names in that module."""
    for node in _statements(module):
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


def _statements(module: str) -> Iterator[ast.stmt]:
    """Yield the top-level statements of a module, including those in `if` and `try` blocks."""
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
    body = _body_of(text, origin.name)
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


def _body_of(text: str, name: str) -> str:
    """Return the source of a class."""
    head = re.search(rf"^class {re.escape(name)}\b", text, re.MULTILINE)
    body = text[head.start() :] if head else ""
    end = re.search(r"\n(?=[^\s#)\]}])", body)
    return body[: end.start()] if end else body


def _is_decorated(text: str, name: str) -> bool:
    return re.search(rf"^@[^\n]*\nclass {re.escape(name)}\b", text, re.MULTILINE) is not None


def _inherited(bases: Sequence[str], depth: int) -> Signature | None:
    """Return the signature that a class without constructor inherits from its base classes."""
    for base in bases:
        if base.rpartition(".")[2] not in ("object", "ABC", "Generic", "Protocol"):
            found = _signature(base, depth - 1)
            return found if isinstance(found, Signature) else None
    return None if bases else Signature({}, anything=False)


def _absolute(name: str, module: str) -> str:
    """Return the dotted name of an object that a module calls `name`."""
    first, _, rest = name.partition(".")
    found = imported_from(module, first) or f"{module}.{first}"
    return f"{found}.{rest}" if rest else found


def imported_from(module: str, name: str) -> str | None:
    """Return the dotted name that a module's import statements bind to a name."""
    for node in _statements(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if name == (alias.asname or alias.name.partition(".")[0]):
                    return alias.name if alias.asname else name
    for other, pairs in _imports(module):
        if name in pairs:
            return f"{other}.{pairs[name]}"
    return None


def _signature_at(text: str, start: int, owner: str, module: str) -> Signature | None:
    """Return the signature of the function definition at position `start`."""
    end = re.compile(r"\)[^\n]*:\s*(?:#[^\n]*)?\n")
    position = start
    while header := end.search(text, position):
        position = header.end()
        lines = text[start : header.end()].strip()
        try:
            parsed = ast.parse(f"{lines} pass" if "\n" not in lines else f"{lines}\n        pass")
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
        value = _plain(_alias(default.id, module) if isinstance(default, ast.Name) else default)
        spec = parse(argument.annotation, lambda name: _alias(name, module))
        if spec and value is None and not any(kind.name == "None" for kind in spec):
            spec = (*spec, Kind("None"))
        found[argument.arg] = Argument(owner, spec, default is None, by_name, value)
    for name in ("self", "cls"):
        found.pop(name, None)
    return Signature(found, arguments.kwarg is not None)


def _alias(name: str, module: str) -> ast.expr | None:
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
    return _plain(_assigned(text, name, indent))


def _plain(expression: ast.expr | None) -> Any:
    """Return the value of an expression of literals; `UNKNOWN` for any other."""
    try:
        return UNKNOWN if expression is None else ast.literal_eval(expression)
    except (ValueError, TypeError):
        return UNKNOWN


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _passed_on(arguments: str, names: Sequence[str]) -> set[str]:
    """Return the arguments that a constructor passes to its base class.

    For example, `super().__init__(name="mnist", **base)` passes `name`.

    Args:
        arguments: source text of the call's arguments.
        names: arguments of the base class, in order.
    """
    positional = [text for text in arguments.split(",") if text.strip() and not re.search(r"=|\*", text)]
    return {*re.findall(r"(\w+)=", arguments), *names[: len(positional)]}


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

    The names are incomplete if one is no literal, if a class is not found, or if `self` is passed on.
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
        nodes = _statements(origin.module) if origin is not None else ()
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
    """Return true if a call gets `self` as an argument, and may thus log for it."""
    known = isinstance(call.func, ast.Name) and call.func.id in (
        "isinstance",
        "type",
        "getattr",
        "hasattr",
        "super",
    )
    return not known and any(isinstance(one, ast.Name) and one.id == "self" for one in call.args)
