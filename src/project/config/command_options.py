"""The command line of what is done after training: `key=value` words, read against a dataclass. No torch."""

import signal
import sys
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from difflib import get_close_matches
from inspect import cleandoc
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from project.config import cli, resolvers
from project.config.suggestions import did_you_mean
from project.errors import InputError
from project.runtime.streams import accept_all_text

WIDTH = 80
"""Columns of what `--help` shows."""
NULL = "null"
TRUTHS = {"true": True, "false": False}
Options = TypeVar("Options")


class Overrides(list[str]):
    """The type of an option that collects all words for its group: `data=…` and `data.…=…`."""


def option(
    default: Any = MISSING, help: str = "", *, least: float | None = None, most: float | None = None
) -> Any:
    """Describe a key of a command.

    Args:
        default: its value where the command line gives none; left out: the key must be given.
        help: a line for `--help`.
        least: smallest number that it takes.
        most: largest one.
    """
    metadata = {"help": help, "least": least, "most": most}
    if isinstance(default, list):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def run_command(main: Callable[[Options], int | None], kind: type[Options], examples: str = "") -> None:
    """Run a script's main function with what the command line says, and end the process with its exit code.

    Args:
        main: does the work; returns an exit code, None for 0.
        kind: dataclass of its options, made with `option`; its docstring is what `--help` begins with.
        examples: shown below the keys.
    """
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
    accept_all_text()
    arguments = sys.argv[1:]
    cli.with_traceback = cli.TRACEBACK_FLAG in arguments
    if {"--help", "-h"} & set(arguments):
        print(describe(kind, Path(sys.argv[0]).name, examples))
        return
    resolvers.register()
    words = [word for word in arguments if word != cli.TRACEBACK_FLAG]
    cli.end_with(lambda: main(parse(words, kind)))


def parse(words: Sequence[str], kind: type[Options]) -> Options:
    """Fill a dataclass from words `key=value`. A word without a key belongs to the first option.

    Args:
        words: of the command line.
        kind: the dataclass; its annotations say what values may be: `str`, `int`, `float`, `bool`, `Path`,
            `Literal[…]`, one of these or None, or `list[str]` (`a,b`); `Overrides` takes a whole group.

    Raises:
        InputError: unknown keys, values of another kind, keys that are missing; all of them, a line each.
    """
    known: dict[str, Field[Any]] = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    given: dict[str, Any] = {}
    meant: set[str] = set()
    lines = []
    for word in words:
        key, sign, text = word.partition("=")
        if word.startswith("-"):
            lines.append(f"{word}: no such flag; keys are given as key=value, --help lists them")
            continue
        if not sign:
            key, text = next(iter(known)), word
        group = key.partition(".")[0]
        if group in known and hints[group] is Overrides:
            if any(other.partition("=")[0] == key for other in given.get(group, ())):
                lines.append(f"{word}: {key} is given twice; leave one out")
            given.setdefault(group, Overrides()).append(word)
        elif key not in known:
            lines.append(f"{word}: no key {key}; {did_you_mean(key, known)}")
            meant.update(get_close_matches(key, known, n=1))
        elif key in given and hints[key] != list[str]:
            twice = f"{key} is given twice; leave one out"
            keyless = f"a word without a key is {key}=…, which is given already; write KEY={word}"
            lines.append(f"{word}: {twice if sign else keyless}")
        else:
            try:
                value = _convert(key, text, hints[key], known[key].metadata)
                given[key] = [*given.get(key, []), *value] if isinstance(value, list) else value
            except InputError as error:
                meant.add(key)
                lines.append(str(error))
    for key, entry in known.items():
        required = entry.default is MISSING and entry.default_factory is MISSING
        if required and key not in given and key not in meant:
            lines.append(f"{key}: is missing; give {key}=…: {entry.metadata['help']}")
    if lines:
        raise InputError("\n".join(lines))
    return kind(**given)


def _convert(key: str, text: str, hint: Any, metadata: Mapping[str, Any]) -> Any:
    """The value that a text stands for."""
    least, most = metadata["least"], metadata["most"]
    kinds = _kinds(hint)
    if text[:1] == text[-1:] and text[:1] in ("'", '"') and len(text) > 1:
        text = text[1:-1]
        if kinds == (list[str],) and text:  # one item, whatever commas it has
            return [text]
    if text == NULL and types.NoneType in kinds:
        return None
    for kind in kinds:
        if kind is types.NoneType:
            continue
        try:
            value = _read(text, kind)
        except ValueError:
            continue
        if least is not None and not isinstance(value, bool) and isinstance(value, int | float):
            if not value >= least:
                raise InputError(f"{key}={text}: must be at least {least:g}")
            if value == float("inf"):
                raise InputError(f"{key}={text}: must be finite")
            if most is not None and value > most:
                raise InputError(f"{key}={text}: must be at most {most:,}")
        return value
    choices = _choices(kinds)
    hint_text = did_you_mean(text, choices) if choices else f"give {' or '.join(map(_name, kinds))}"
    raise InputError(f"{key}={text}: {hint_text}")


def _kinds(hint: Any) -> tuple[Any, ...]:
    """What an annotation allows: one type, or several."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _choices(kinds: tuple[Any, ...]) -> list[str]:
    """The words that a key is chosen from; none where it takes any value of its type."""
    literals = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    return [*literals, NULL] if literals and types.NoneType in kinds else literals


def _read(text: str, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        for choice in get_args(kind):
            if str(choice) == text:
                return choice
        raise ValueError
    if kind == list[str]:
        items = [item.strip() for item in text.removeprefix("[").removesuffix("]").split(",")]
        if not all(items):
            raise ValueError
        return list(map(_with_home, items))
    if kind is bool:
        if text.lower() not in TRUTHS:
            raise ValueError
        return TRUTHS[text.lower()]
    if kind in (str, Path) and not text:
        raise ValueError
    value = kind(_with_home(text))
    if value != value:  # nan
        raise ValueError
    return value


def _with_home(text: str) -> str:
    """A path with the home folder for a `~` at its start, which shells leave behind a `=`."""
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:  # no such user
        return text


def _name(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", types.NoneType: NULL}
    names |= {str: "a text", Path: "a path", list[str]: "one or more, separated by commas"}
    return names.get(kind, str(kind))


def describe(kind: type[Any], script: str, examples: str = "") -> str:
    """What `--help` shows: the command's keys with their defaults.

    Args:
        kind: dataclass of its options.
        script: name of its file.
        examples: shown at the end.
    """
    hints = get_type_hints(kind)
    rows = []
    for entry in fields(kind):
        if hints[entry.name] is Overrides:
            rows.append((f"{entry.name}.…=…", entry.metadata["help"]))
            continue
        default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
        rows.append((f"{entry.name}={_shown(default)}", entry.metadata["help"]))
        if choices := [choice for choice in _choices(_kinds(hints[entry.name])) if choice != NULL]:
            rows[-1] = (rows[-1][0], f"{rows[-1][1]}: {' '.join(choices)}")
    rows.append((cli.TRACEBACK_FLAG, "show where a mistake was found"))
    indent = max(len(name) for name, _ in rows) + 4
    lines = [f"usage: python scripts/{script} KEY=VALUE …", "", cleandoc(kind.__doc__ or ""), ""]
    for name, text in rows:
        wrapped = textwrap.wrap(text, WIDTH - indent) or [""]
        lines += [f"  {name:<{indent - 2}}{wrapped[0]}", *(" " * indent + more for more in wrapped[1:])]
    return "\n".join(lines) + (f"\n\n{examples.strip()}" if examples else "")


def _shown(value: Any) -> str:
    """A default as it would be typed."""
    if value is None:
        return NULL
    if value is MISSING:
        return ""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
