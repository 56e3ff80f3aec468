"""What constructors take, read from their source: importing torch or lightning would take seconds."""

import ast
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from project.config.source_index import find_origin, text_of

READABLE = ("project", "torch", "lightning", "torchvision", "torchmetrics")
"""Packages whose sources say in the plain way what they define."""
DEEPEST = 12


class Signature(NamedTuple):
    """What a class or function takes.

    Args:
        names: of its parameters, inherited ones included, without `self`.
        required: those without a default, positional ones.
        required_keywords: those without a default that can be given by name alone.
        anything: it takes names that are not known here.
        defaults: those that are plain values, by name.
    """

    names: tuple[str, ...]
    required: tuple[str, ...]
    required_keywords: tuple[str, ...]
    anything: bool
    defaults: Mapping[str, Any]


class Missing(NamedTuple):
    """A target that certainly does not exist.

    Args:
        what: the name that is not there.
        where: the module or package in which it is not.
        known: what there is instead.
    """

    what: str
    where: str
    known: tuple[str, ...]


@cache
def signature_of(target: str) -> Signature | Missing | None:
    """Read what a target takes.

    Args:
        target: dotted name, as in `_target_`.

    Returns:
        None where the source does not say it in the plain way.
    """
    try:
        return _signature(target, DEEPEST)
    except (OSError, SyntaxError, UnicodeDecodeError, RecursionError):
        return None


def _signature(target: str, depth: int) -> Signature | Missing | None:
    module, _, name = target.rpartition(".")
    if not depth or module.split(".")[0] not in READABLE:
        return None
    found = _source_of(module)
    if not isinstance(found, Path):
        return found
    text = found.read_text(encoding="utf-8")
    if function := re.search(rf"^(?:async )?def {name}\(", text, re.MULTILINE):
        return _of_parameters(text, function.start(), skip_first=False)
    if not (head := re.search(rf"^class {name}\b", text, re.MULTILINE)):
        if elsewhere := _imported(text, name, module):
            return _signature(elsewhere, depth - 1)
        plain = not re.search(rf"import \*|__getattr__|\b{name}\b", text)
        known = re.findall(r"^(?:class|def) ([A-Za-z]\w*)|^from .* import ([A-Z]\w*)", text, re.MULTILINE)
        return Missing(name, module, tuple(one or other for one, other in known)) if plain else None
    body = text[head.start() :]
    end = re.search(r"\n(?=[^\s#)\]}])", body)
    body = body[: end.start()] if end else body
    bases = _bases(body)
    constructor = re.search(r"^    def __init__\(", body, re.MULTILINE)
    if constructor is None:
        if re.search(r"^    def __new__\(|^@dataclass", body, re.MULTILINE) or _decorated(text, head.start()):
            return None
        return _inherited(bases, text, module, depth)
    own = _of_parameters(body, constructor.start(), skip_first=True)
    if own is None or not own.anything:
        return own
    call = re.search(r"super\(\).__init__\(([^)]*)\)", body[constructor.start() :])
    if call is None or "**" not in call[1]:  # others than the base take them
        return own
    more = _inherited(bases, text, module, depth)
    if not isinstance(more, Signature):
        return own
    given = _passed_on(call[1], more.names)
    names = dict.fromkeys([*own.names, *(name for name in more.names if name not in given)])
    keywords = [
        name
        for name in (*more.required, *more.required_keywords)
        if name not in given and name not in own.names
    ]
    defaults = {name: value for name, value in more.defaults.items() if name not in own.names}
    return Signature(
        tuple(names),
        own.required,
        (*own.required_keywords, *keywords),
        more.anything,
        {name: value for name, value in defaults.items() if name in names} | dict(own.defaults),
    )


def _decorated(text: str, start: int) -> bool:
    return text[:start].rstrip("\n").rpartition("\n")[2].startswith("@")


def _source_of(module: str) -> Path | Missing | None:
    """The file of a module, found without importing anything."""
    package, *parts = module.split(".")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations)))
    for index, part in enumerate(parts):
        if (path / part).is_dir():
            path /= part
            continue
        file = path / f"{part}.py"
        if file.is_file():
            return file if index == len(parts) - 1 else None
        if package == "project" or path.is_dir():
            compiled = any(path.glob(f"{part}.*"))
            known = tuple(sorted(other.stem for other in path.glob("*.py") if other.stem != "__init__"))
            # A part that is no module may be a class, of which the target is an attribute.
            return (
                None
                if compiled or part[:1].isupper()
                else Missing(part, ".".join([package, *parts[:index]]), known)
            )
    return path / "__init__.py"


def _bases(body: str) -> list[str]:
    """Names of a class's bases, without their subscripts."""
    header = body[: body.index(":\n")] if ":\n" in body else body
    inside = re.search(r"\((.*)\)", header, re.DOTALL)
    names = re.sub(r"\[[^\]]*\]", "", inside[1]).split(",") if inside else []
    return [name.strip() for name in names if name.strip() and "=" not in name]


def bases_of(target: str) -> list[str]:
    """Read the base classes of a class as dotted names; none where the source does not say them plainly.

    Args:
        target: dotted name, of any package.
    """
    module, _, attribute = target.rpartition(".")
    if (origin := find_origin(module, attribute)) is None:
        return []
    text = text_of(origin.module) or ""
    head = re.search(rf"^class {re.escape(origin.name)}\b[^\n(]*\([^)]*\):", text, re.MULTILINE)
    return [_absolute(base, text, origin.module) for base in _bases(head[0])] if head else []


def _inherited(bases: Sequence[str], text: str, module: str, depth: int) -> Signature | None:
    for base in bases:
        if base in ("object", "ABC", "Generic", "Protocol"):
            continue
        found = _signature(_absolute(base, text, module), depth - 1)
        return found if isinstance(found, Signature) else None
    return Signature((), (), (), anything=False, defaults={}) if not bases else None


def _absolute(name: str, text: str, module: str) -> str:
    """A name in a module as a dotted name from outside."""
    first, _, rest = name.partition(".")
    if found := _imported(text, first, module):
        return f"{found}.{rest}" if rest else found
    return f"{module}.{name}"


def _imported(text: str, name: str, module: str) -> str | None:
    """The dotted name that a module's import statements give to `name`."""
    if found := re.search(rf"^import ([\w.]+) as {name}$", text, re.MULTILINE):
        return found[1]
    if re.search(rf"^import {name}\b", text, re.MULTILINE):
        return name
    pattern = r"^from ([\w.]+) import (?:\(([^)]*)\)|([^\n(]*))"
    for found in re.finditer(pattern, text, re.MULTILINE):
        for entry in re.sub(r"#.*", "", found[2] or found[3] or "").split(","):
            words = entry.split()
            if words and words[-1] == name:
                origin = found[1]
                if origin.startswith("."):
                    up = len(origin) - len(origin.lstrip("."))
                    kept = module.split(".")[: None if up == 1 else 1 - up]
                    if not _is_package(module):
                        kept = module.split(".")[:-up]
                    origin = ".".join([*kept, origin.lstrip(".")]).rstrip(".")
                return f"{origin}.{words[0]}"
    return None


def _is_package(module: str) -> bool:
    found = _source_of(module)
    return isinstance(found, Path) and found.name == "__init__.py"


def _of_parameters(text: str, start: int, *, skip_first: bool) -> Signature | None:
    """The signature of the `def` that begins at `start`."""
    header = re.compile(r"\)[^\n]*:\s*(?:#[^\n]*)?\n").search(text, start)
    while header is not None:
        lines = text[start : header.end()].strip()
        try:
            parsed = ast.parse(f"{lines} pass" if "\n" not in lines else f"{lines}\n        pass")
        except SyntaxError:
            header = re.compile(r"\)[^\n]*:\s*(?:#[^\n]*)?\n").search(text, header.end())
            continue
        function = parsed.body[0]
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        return _plain(function.args, skip_first=skip_first)
    return None


def _plain(arguments: ast.arguments, *, skip_first: bool) -> Signature:
    positional = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    required = positional[: len(positional) - len(arguments.defaults)]
    keywords = [argument.arg for argument in arguments.kwonlyargs]
    required_keywords = [
        name for name, default in zip(keywords, arguments.kw_defaults, strict=True) if default is None
    ]
    first = 1 if skip_first else 0
    given = [
        *zip(positional[len(required) :], arguments.defaults, strict=True),
        *zip(keywords, arguments.kw_defaults, strict=True),
    ]
    defaults: dict[str, Any] = {}
    for name, value in given:
        if value is not None:
            with suppress(ValueError):  # no plain value
                defaults[name] = ast.literal_eval(value)
    return Signature(
        (*positional[first:], *keywords),
        tuple(required[first:]),
        tuple(required_keywords),
        arguments.kwarg is not None,
        defaults,
    )


def _passed_on(arguments: str, names: Sequence[str]) -> set[str]:
    """Names that a constructor gives to its base itself, as in `super().__init__(name="mnist", **base)`.

    Args:
        arguments: of the call.
        names: of the base's parameters, in order.
    """
    positional = [text for text in arguments.split(",") if text.strip() and not re.search(r"=|\*", text)]
    return {*re.findall(r"(\w+)=", arguments), *names[: len(positional)]}
