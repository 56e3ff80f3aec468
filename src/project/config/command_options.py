"""Parse `key=value` arguments of the commands other than training into a dataclass, without torch."""

import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, field, fields, make_dataclass
from inspect import cleandoc
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import ValidationError

from project.config import cli
from project.config.resolvers import register_resolvers
from project.errors import InputError, one_line
from project.runs.migrations import RENAMED_OPTIONS
from project.runtime.process import as_called, command_state, escape_unencodable
from project.runtime.text import did_you_mean, nearest_names

WIDTH = 80
"""Columns of `--help`."""
NULL = "null"
TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    NoneType: NULL,
    str: "text",
    Path: "a path",
    list[str]: "one or more, separated by commas",
}
CONDITION = re.compile(r"([^=<>~!]+?)\s*(!=|<=|>=|=|<|>|~)\s*(.*)", re.DOTALL)
"""Condition on a column, such as `val/acc>=0.98`: column, operator, value."""
Options = TypeVar("Options")


class Overrides(list[str]):
    """Type of an option that collects all overrides of a group: `data=…` and `data.…=…`."""


class Conditions(list[str]):
    """Type of an option that collects conditions on columns, such as `val/acc>0.98`."""


def option(
    default: Any = MISSING, help: str = "", *, least: float | None = None, most: float | None = None
) -> Any:
    """Declare one key of a command.

    Args:
        default: default value [none: the key is required].
        help: description for `--help`.
        least: minimum of a number [no limit].
        most: maximum of a number [no limit].
    """
    metadata = {"help": help, "least": least, "most": most}
    if isinstance(default, list):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def run_command(main: Callable[[Options], int | None], kind: type[Options], examples: str = "") -> None:
    """Run a command with the options of the command line, and end the process with its exit code.

    Args:
        main: the command; returns an exit code, or None for 0.
        kind: dataclass of the options, declared with `option`; its docstring is the start of `--help`.
        examples: text at the end of `--help`.
    """
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # no traceback after `| head`
    escape_unencodable()
    arguments = sys.argv[1:]
    command_state.shows_traceback = cli.TRACEBACK_FLAG in arguments
    if {"--help", "-h"} & set(arguments):
        script = f"{Path(sys.argv[0]).stem.removeprefix('project-')}.py"
        print(describe(kind, script, examples))
        return
    register_resolvers()
    words = [word for word in arguments if word != cli.TRACEBACK_FLAG]
    cli.end_with(lambda: main(read_options(kind, words)))


def read_options(kind: type[Options], words: Sequence[str]) -> Options:
    """Return a dataclass filled from `key=value` arguments; a value without a key is the first option.

    Args:
        kind: dataclass; annotations may be `str`, `int`, `float`, `bool`, `Path`, `Literal[…]`,
            `list[str]` (`a,b`), one of these or None, `Overrides`, or `Conditions`.
        words: arguments of the command line.

    Raises:
        InputError: keys are unknown, repeated or missing, or values are invalid; one line each.
    """
    known: dict[str, Field[Any]] = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    collector = next((name for name, hint in hints.items() if hint is Conditions), "")
    given: dict[str, Any] = {}
    wrong: set[str] = set()
    problems = []
    for word in words:
        key, has_key, text = word.partition("=")
        if key not in known and os.path.lexists(word):  # a path that contains an equals sign
            key, has_key, text = next(iter(known)), "", word
        if word.startswith("-"):
            name = word.lstrip("-").partition("=")[0]
            fix = f"write {name}=…" if name in known else "keys are given as key=value, --help lists them"
            problems.append(f"{word}: no such flag; {fix}")
            continue
        condition = CONDITION.fullmatch(word)
        if collector and condition and condition[1] not in known and text != word:
            given.setdefault(collector, Conditions()).append(word)
            continue
        if not has_key:
            key, text = next(iter(known)), word
        group = key.partition(".")[0]
        if hints.get(group) is Overrides:
            if any(other.partition("=")[0] == key for other in given.get(group, ())):
                problems.append(f"{word}: {key} is given twice; leave one out")
            given.setdefault(group, Overrides()).append(word)
        elif key not in known:
            renamed = RENAMED_OPTIONS.get(key)
            hint = f"no key {key}; {did_you_mean(key, known)}"
            problems.append(f"{word}: {f'`{key}` is now `{renamed}`' if renamed in known else hint}")
            wrong.update(nearest_names(key, known)[:1])
        elif key in given and hints[key] != list[str]:
            twice = f"{key} is given twice; leave one out"
            keyless = f"an argument without a key is {key}=…, which is already given; write KEY={word}"
            problems.append(f"{word}: {twice if has_key else keyless}")
        else:
            try:
                value = _convert(text, hints[key], **known[key].metadata)
                given[key] = [*given.get(key, []), *value] if isinstance(value, list) else value
            except ValueError as error:
                wrong.add(key)
                problems.append(f"{key}={text}: {one_line(error)}")
    for key, entry in known.items():
        required = entry.default is MISSING and entry.default_factory is MISSING
        if required and key not in given and key not in wrong:
            problems.append(f"{key}: missing; give {key}=…: {entry.metadata['help']}")
    if problems:
        raise InputError("\n".join(problems))
    return kind(**given)


def _convert(text: str, hint: Any, *, least: float | None, most: float | None, help: str) -> Any:
    """Convert a string to the type of an annotation, by OmegaConf's rules for single values."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    choices = _choices(hint)
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    text = text[1:-1] if quoted else text
    if text == NULL and NoneType in members:
        return None
    if text in choices:
        return text
    if list[str] in members:
        is_one = quoted or os.path.lexists(_expand_home(text))  # a path that contains commas
        items = [text] if is_one else text.removeprefix("[").removesuffix("]").split(",")
        if all(item.strip() for item in items):
            return [_expand_home(item if is_one else item.strip()) for item in items]
    plain = [kind for kind in members if kind in (int, float, bool, str, Path)]
    if plain and text:
        try:
            return _within(_parse(_expand_home(text), plain[0]), least, most)
        except ValidationError:
            pass
    expected = f"expected {' or '.join(TYPE_NAMES[kind] for kind in members if kind in TYPE_NAMES)}"
    raise ValueError(did_you_mean(text, choices) if choices else expected)


def _parse(text: str, kind: type) -> Any:
    typed = OmegaConf.structured(make_dataclass("Typed", [("value", kind | None, None)]))
    typed.value = text
    if typed.value != typed.value:
        raise ValidationError("NaN")
    return typed.value


def _within(value: Any, least: float | None, most: float | None) -> Any:
    if least is not None and value < least:
        raise ValueError(f"must be at least {least:g}")
    if least is not None and not isfinite(value):
        raise ValueError("must be finite")
    if most is not None and value > most:
        raise ValueError(f"must be at most {most:,}")
    return value


def _choices(hint: Any) -> list[str]:
    """Return the choices of a `Literal`; empty for other types."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    words = [str(word) for kind in members if get_origin(kind) is Literal for word in get_args(kind)]
    return [*words, NULL] if words and NoneType in members else words


def _expand_home(text: str) -> str:
    """Expand a leading `~`, which shells do not do after a `=`."""
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:  # no such user
        return text


def describe(kind: type[Any], script: str, examples: str = "") -> str:
    """Return the text of `--help`: the keys of a command with their defaults.

    Args:
        kind: dataclass of the options.
        script: file name of the script.
        examples: text at the end.
    """
    hints = get_type_hints(kind)
    rows = []
    for entry in fields(kind):
        choices = [word for word in _choices(hints[entry.name]) if word != NULL]
        if all(re.search(rf"\b{word}\b", entry.metadata["help"]) for word in choices):
            choices = []  # the description names them
        default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
        name = f"{entry.name}={_shown(default)}"
        if hints[entry.name] is Overrides:
            name = f"{entry.name}.…=…"
        elif hints[entry.name] is Conditions:
            name = "COLUMN=VALUE"
        rows.append((name, entry.metadata["help"] + (f"; one of: {', '.join(choices)}" if choices else "")))
    rows.append((cli.TRACEBACK_FLAG, "show the traceback of an error"))
    indent = max(len(name) for name, _ in rows) + 4
    lines = [f"usage: python scripts/{script} KEY=VALUE …", "", cleandoc(kind.__doc__ or ""), ""]
    for name, text in rows:
        lines += textwrap.wrap(
            text, WIDTH, initial_indent=f"  {name:<{indent - 2}}", subsequent_indent=" " * indent
        ) or [f"  {name}"]
    return as_called("\n".join(lines) + (f"\n\n{examples.strip()}" if examples else ""))


def _shown(value: Any) -> str:
    """Return a default as a user would type it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    words = {None: NULL, MISSING: "", True: "true", False: "false"}
    return words.get(value, str(value)) if isinstance(value, bool | None) or value is MISSING else str(value)
