"""The command line as it is typed, before Hydra reads it."""

from collections.abc import Iterator, Sequence

from hydra._internal.utils import get_args_parser

from project.checks.groups import GROUPS, KEYS
from project.errors import InputError


def refuse_wrong_arguments(arguments: Sequence[str]) -> None:
    """Refuse what Hydra would pass over in silence, or tell in many lines.

    Args:
        arguments: of the command line.

    Raises:
        InputError: a flag is wrong, or an override has no key, or a key is given twice: a line each.
    """
    parser = get_args_parser()
    parser.error = _raise  # type: ignore[assignment, method-assign]
    known, unknown = parser.parse_known_args(list(arguments))
    problems = [
        f"{text}: no such flag; --hydra-help lists them, and keys are given as key=value"
        for text in unknown
        if text.startswith("-")
    ]
    overrides = [*known.overrides, *(text for text in unknown if not text.startswith("-"))]
    if problems := [*problems, *repeated(overrides), *_needed_by_hydra(overrides)]:
        raise InputError("\n".join(problems))


def _needed_by_hydra(overrides: Sequence[str]) -> Iterator[str]:
    """Yield what is left out that the run folder's name is made of, before Hydra looks for it."""
    for key, remedy in (("paths", GROUPS["paths"]), ("paths.outputs", KEYS["paths.outputs"])):
        if f"~{key}" in overrides:
            yield f"~{key}: a run needs it; {remedy}"


def repeated(overrides: Sequence[str]) -> Iterator[str]:
    """Yield which keys are given more than once, and overrides without a key."""
    given: dict[str, list[str]] = {}
    for text in overrides:
        key = text.partition("=")[0].lstrip("+~").strip()
        if not key:
            yield f"{text}: no override; write key=value"
            continue
        given.setdefault(key.removesuffix("@_global_"), []).append(text)
    for key, texts in given.items():
        if len(set(texts)) > 1:
            yield f"{key}: given {_times(len(texts))}, as {' and '.join(texts)}; leave one"


def _times(number: int) -> str:
    return "twice" if number == 2 else f"{number} times"


def _raise(message: str) -> None:
    raise InputError(f"{' '.join(message.split())}; --hydra-help lists the flags")
