"""What a sweep goes through: the grid of its overrides, repeated over seeds and folds."""

import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from project.config.validation.arguments import repeated as repeated_keys
from project.errors import InputError, one_line
from project.runs.sweep_jobs import Job, folder_name
from project.runtime.secrets import redact_text
from project.runtime.yaml_files import read_text


class Point:
    """Values of the swept keys, and the overrides that all points share.

    Args:
        constant: overrides without choices.
        varied: overrides, one value each.
    """

    def __init__(self, constant: Sequence[str], varied: Sequence[str]) -> None:
        self.constant = list(constant)
        self.varied = list(varied)


class Limit(NamedTuple):
    """Largest number of points of a sweep.

    Args:
        points: at most, repetitions included.
        repeats: jobs of each point: seeds times folds.
    """

    points: int = 10_000
    repeats: int = 1

    def refuse_more(self, number: int, of: str) -> None:
        """Raise an InputError if `number` points, of what the text `of` says, are too many."""
        if number * self.repeats > self.points:
            each = f", each {self.repeats:,} times (seeds, folds)" if self.repeats > 1 else ""
            raise InputError(
                f"{of}: {number:,} points{each}; sweep at most {self.points:,}, or raise "
                "hydra.sweeper.max_points"
            )


LIMIT = Limit()


def grid(overrides: Sequence[str], loader: ConfigLoader, limit: Limit = LIMIT) -> list[Point]:
    """Every combination of the values that Hydra's sweep grammar lists (a,b; range; choice; glob).

    Raises:
        InputError: an interval, which has no end of values, values that are none of a group's options, or
            more points than the limit.
    """
    constant, swept = parse_sweep(overrides, loader)
    for override in swept:
        if not override.is_discrete_sweep():
            raise InputError(
                f"{override.input_line}: a grid needs single values, as in "
                f"{override.key_or_group}=0.1,0.01; hydra/sweeper=optuna searches intervals"
            )
    of = " ".join(override.input_line or "" for override in swept) or "one point"
    limit.refuse_more(math.prod(map(number_of_values, swept)), of)
    return [Point(constant, values) for values in product(*map(_values, swept))]


def parse_sweep(overrides: Sequence[str], loader: ConfigLoader) -> tuple[list[str], list[Override]]:
    """Take apart what all points share and what is swept.

    Args:
        overrides: of the command line.
        loader: Hydra's, for `glob` and the options of groups.

    Raises:
        InputError: a range without an end, or values for a group that are no names.
    """
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    swept = [override for override in parsed if override.is_sweep_override()]
    refuse_secrets(swept)
    for override in swept:
        value = override.value()
        numbers = isinstance(value, RangeSweep | IntervalSweep)
        if (known := loader.get_group_options(override.key_or_group)) and (
            numbers or any(isinstance(one, bool | int | float | dict) for one in override.sweep_iterator())
        ):
            raise InputError(
                f"{override.input_line}: options of a group have names; choose from {', '.join(known)}"
            )
        if isinstance(value, RangeSweep):
            limits = (value.start, value.stop, value.step)
            if not value.step or not all(math.isfinite(number or 0) for number in limits):
                raise InputError(
                    f"{override.input_line}: a range without an end; give range(START,STOP,STEP) in finite "
                    "numbers, with a step that is not 0"
                )
    return [override.input_line or "" for override in parsed if override not in swept], swept


def number_of_values(override: Override) -> int:
    """Count the values of a discrete sweep, those of a range without making them."""
    value = override.value()
    if not isinstance(value, RangeSweep):
        return sum(1 for _ in override.sweep_iterator())
    assert value.start is not None
    assert value.stop is not None
    start, stop, step = (Decimal(number) for number in (value.start, value.stop, value.step))
    return max(0, math.ceil((stop - start) / step))


def distinct(points: Sequence[Point]) -> list[Point]:
    """Points without those that an earlier one equals, which would count as a repetition of its result."""
    first: dict[frozenset[str], Point] = {}
    for point in points:
        first.setdefault(frozenset((*point.constant, *point.varied)), point)
    return list(first.values())


def listed(file: str, overrides: Sequence[str], loader: ConfigLoader, limit: Limit = LIMIT) -> list[Point]:
    """The points of a file, one line of overrides each, every one with every point of the command line.

    Args:
        file: its path, of a text as `read_text` takes it; empty lines and what follows a # do not count.
        overrides: of the command line.
        loader: Hydra's, for `glob`.
        limit: of the number of points.

    Raises:
        InputError: the file cannot be read, a line is none of overrides, or there are too many points.
    """
    shared = grid(overrides, loader, limit)
    try:
        lines = read_text(Path(file)).splitlines()
    except InputError as error:
        raise InputError(f"hydra.sweeper.file={error}") from error
    points: list[Point] = []
    for number, line in enumerate(lines, start=1):
        try:
            if not (texts := list(_words(line))):
                continue
            if problems := list(repeated_keys(texts)):
                raise InputError(problems[0])
            refuse_secrets(OverridesParser.create(config_loader=loader).parse_overrides(texts))
            own = grid(texts, loader, limit)
        except (HydraException, InputError, ValueError) as error:
            raise InputError(f"hydra.sweeper.file={file}: line {number}: {one_line(error)}") from error
        limit.refuse_more(len(points) + len(own) * len(shared), f"hydra.sweeper.file={file}")
        for base in shared:
            points += [Point(base.constant, [*base.varied, *one.constant, *one.varied]) for one in own]
    if not points:
        raise InputError(f"hydra.sweeper.file={file}: no line with overrides, such as model=cnn optim.lr=0.1")
    return points


def _words(line: str) -> Iterator[str]:
    """Words of a line as a shell reads them, up to a comment, in which quotes need not be closed."""
    if line.lstrip().startswith("#"):
        return
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    for word in lexer:
        if word.startswith("#"):
            return
        yield word


def refuse_secrets(overrides: Iterable[Override]) -> None:
    """Refuse secrets where values vary: those name folders and stand in tables, records and a study.

    Raises:
        InputError: a value is one.
    """
    for override in overrides:
        key = override.get_key_element()
        if isinstance(override.value(), RangeSweep | IntervalSweep):
            texts = [f"{key}=0"]  # any number of it
        elif override.is_sweep_override():
            texts = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            texts = [override.input_line or ""]
        if any(redact_text(text) != text for text in texts):
            raise InputError(
                f"{key}: holds a secret, and a sweep writes down what it varies; give all jobs one value, "
                f"as in '{key}=${{oc.env:NAME}}'"
            )


def repeated(point: Point, base_seed: int, seeds: int, folds: int | None) -> Iterator[list[str]]:
    """Yield, for each job of a point, what it adds to the point's overrides.

    Raises:
        InputError: the point, or what all points share, sets a seed or fold itself.
    """
    keys = {override.partition("=")[0] for override in point.varied}
    given = {override.partition("=")[0].lstrip("+") for override in point.constant}
    if folds is not None and (others := sorted(given & {"data.fold", "data.folds"})):
        raise InputError(f"folds={folds}: sets data.folds and data.fold; leave out {' and '.join(others)}")
    for key, number in (("seed", seeds > 1), ("data.fold", folds is not None)):
        if number and key in keys:
            plural = {"seed": f"seeds={seeds}", "data.fold": f"folds={folds}"}[key]
            raise InputError(f"{plural}: {key} is swept already; leave out one of them")
    for seed, fold in product(range(seeds), range(folds or 1)):
        extra = [f"seed={base_seed + seed}"] if seeds > 1 else []
        yield extra + ([f"data.folds={folds}", f"data.fold={fold}"] if folds is not None else [])


def jobs_of(
    number: int, point_number: int, point: Point, extras: Sequence[Sequence[str]], digits: int
) -> list[Job]:
    """The jobs of one point, numbered from `number` on."""
    jobs = []
    for index, extra in enumerate(extras):
        told = [override for override in extra if not override.startswith("data.folds=")]
        varied = [*point.varied, *told]
        jobs.append(
            Job(
                number=number + index,
                overrides=[*without(point.constant, [*point.varied, *extra]), *point.varied, *extra],
                varied=varied,
                name=folder_name(number + index, varied, digits),
                point=point_number,
            )
        )
    return jobs


def without(constant: Sequence[str], replaced: Sequence[str]) -> list[str]:
    """Overrides but those whose key is given anew."""
    keys = {override.partition("=")[0].lstrip("+~") for override in replaced}
    return [override for override in constant if override.partition("=")[0].lstrip("+~") not in keys]


def _values(override: Override) -> list[str]:
    key = override.get_key_element()
    values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    if not values:
        raise InputError(f"{override.input_line}: has no values; the end of a range is not part of it")
    return values
