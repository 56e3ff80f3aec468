"""The default sweeper: all combinations of the swept values, repeated over seeds and folds."""

import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Annotated, NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from project.config.validation.command_request import repeated as find_repeated
from project.errors import InputError, one_line
from project.runs.sweep_jobs import Job, folder_name
from project.runtime.bounds import Range
from project.runtime.console import waiting
from project.runtime.secrets import redact_text
from project.runtime.text import plural
from project.runtime.yaml_files import read_text
from project.sweeps.job_scheduler import JobList
from project.sweeps.sweepers.base import RecordedSweeper

MANY_JOBS = 500
"""Number of jobs above which a message announces the checks, which then take seconds."""


@dataclass
class Point:
    """Values of the swept keys, and the overrides that all points share."""

    constant: list[str]
    varied: list[str]


class PointLimit(NamedTuple):
    """Maximum number of points of a sweep."""

    points: int = 10_000  # including repetitions
    repeats: int = 1  # jobs per point: seeds times folds

    def refuse_more(self, number: int, source: str) -> None:
        """Raise an InputError if `number` points are too many; `source` names their overrides or file."""
        if number * self.repeats > self.points:
            each = f", each {self.repeats:,} times (seeds, folds)" if self.repeats > 1 else ""
            raise InputError(
                f"{source}: {plural(number, 'point')}{each}; sweep at most {self.points:,}, or raise "
                "hydra.sweeper.max_points"
            )


DEFAULT_LIMIT = PointLimit()


def grid(overrides: Sequence[str], loader: ConfigLoader, limit: PointLimit = DEFAULT_LIMIT) -> list[Point]:
    """Return every combination of the values that Hydra's sweep grammar lists (a,b; range; choice; glob).

    Raises:
        InputError: an interval, values that are not options of a group, or more points than the limit.
    """
    constant, swept = parse_sweep(overrides, loader)
    for override in swept:
        if not override.is_discrete_sweep():
            raise InputError(
                f"{override.input_line}: a grid needs single values, as in "
                f"{override.key_or_group}=0.1,0.01; hydra/sweeper=optuna searches intervals"
            )
    source = " ".join(override.input_line or "" for override in swept) or "one point"
    limit.refuse_more(math.prod(map(count_values, swept)), source)
    return [Point(constant, list(values)) for values in product(*map(_list_values, swept))]


def parse_sweep(overrides: Sequence[str], loader: ConfigLoader) -> tuple[list[str], list[Override]]:
    """Separate the overrides that all points share from the swept ones.

    Raises:
        InputError: an infinite range, or numbers as options of a group.
    """
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    swept = [override for override in parsed if override.is_sweep_override()]
    refuse_secrets(swept)
    for override in swept:
        value = override.value()
        has_numbers = isinstance(value, RangeSweep | IntervalSweep)
        if (known := loader.get_group_options(override.key_or_group)) and (
            has_numbers
            or any(isinstance(option, bool | int | float | dict) for option in override.sweep_iterator())
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


def count_values(override: Override) -> int:
    """Count the values of a discrete sweep, without listing those of a range."""
    value = override.value()
    if not isinstance(value, RangeSweep):
        return sum(1 for _ in override.sweep_iterator())
    assert value.start is not None
    assert value.stop is not None
    start, stop, step = (Decimal(number) for number in (value.start, value.stop, value.step))
    return max(0, math.ceil((stop - start) / step))


def drop_duplicates(points: Sequence[Point]) -> list[Point]:
    """Drop points equal to an earlier one, whose results would count as repetitions."""
    first: dict[frozenset[str], Point] = {}
    for point in points:
        first.setdefault(frozenset((*point.constant, *point.varied)), point)
    return list(first.values())


def read_points(
    file: str, overrides: Sequence[str], loader: ConfigLoader, limit: PointLimit = DEFAULT_LIMIT
) -> list[Point]:
    """Read points from a file, and combine each with every point of the command line.

    Raises:
        InputError: the file cannot be read, a line is not a list of overrides, or there are too many points.
    """
    shared = grid(overrides, loader, limit)
    try:
        lines = read_text(Path(file)).splitlines()
    except InputError as error:
        raise InputError(f"hydra.sweeper.file={error}") from error
    points: list[Point] = []
    for number, line in enumerate(lines, start=1):
        try:
            if not (words := list(_split_words(line))):
                continue
            if problems := list(find_repeated(words)):
                raise InputError(problems[0])
            refuse_secrets(OverridesParser.create(config_loader=loader).parse_overrides(words))
            own = grid(words, loader, limit)
        except (HydraException, InputError, ValueError) as error:
            raise InputError(f"hydra.sweeper.file={file}: line {number}: {one_line(error)}") from error
        limit.refuse_more(len(points) + len(own) * len(shared), f"hydra.sweeper.file={file}")
        for base in shared:
            points += [Point(base.constant, [*base.varied, *point.constant, *point.varied]) for point in own]
    if not points:
        raise InputError(f"hydra.sweeper.file={file}: no line with overrides, such as model=cnn optim.lr=0.1")
    return points


def _split_words(line: str) -> Iterator[str]:
    """Split a line like a shell, without its comment, in which quotes may be unbalanced."""
    if line.lstrip().startswith("#"):
        return
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    for word in lexer:
        if word.startswith("#"):
            return
        yield word


def refuse_secrets(overrides: Iterable[Override]) -> None:
    """Refuse secrets among swept values, which appear in folder names, tables, records and studies."""
    for override in overrides:
        key = override.get_key_element()
        if isinstance(override.value(), RangeSweep | IntervalSweep):
            texts = [f"{key}=0"]  # stands for any number
        elif override.is_sweep_override():
            texts = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            texts = [override.input_line or ""]
        if any(redact_text(text) != text for text in texts):
            raise InputError(
                f"{key}: holds a secret, but a sweep records its varied values; give all jobs one value, "
                f"as in '{key}=${{oc.env:NAME}}'"
            )


def repetitions(point: Point, base_seed: int, seeds: int, folds: int | None) -> Iterator[list[str]]:
    """Yield the additional overrides (seed and fold) of each job of a point."""
    swept = {override.partition("=")[0] for override in point.varied}
    given = {override.partition("=")[0].lstrip("+") for override in point.constant}
    if folds is not None and (others := sorted(given & {"data.fold", "data.folds"})):
        raise InputError(f"folds={folds}: sets data.folds and data.fold; leave out {' and '.join(others)}")
    if seeds > 1 and "seed" in swept:
        raise InputError(f"seeds={seeds}: seed is swept already; leave out one of them")
    if folds is not None and "data.fold" in swept:
        raise InputError(f"folds={folds}: data.fold is swept already; leave out one of them")
    for seed, fold in product(range(seeds), range(folds or 1)):
        extra = [f"seed={base_seed + seed}"] if seeds > 1 else []
        yield extra + ([f"data.folds={folds}", f"data.fold={fold}"] if folds is not None else [])


def make_jobs(
    first: int, point_number: int, point: Point, extras: Sequence[Sequence[str]], digits: int
) -> list[Job]:
    """Create the jobs of one point, numbered from `first`."""
    jobs = []
    for number, extra in enumerate(extras, start=first):
        varied = [*point.varied, *(text for text in extra if not text.startswith("data.folds="))]
        given = [*point.varied, *extra]
        replaced = {_key(override) for override in given}
        kept = [override for override in point.constant if _key(override) not in replaced]
        name = folder_name(number, varied, digits)
        jobs.append(Job(number, [*kept, *given], varied, name, point=point_number))
    return jobs


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _list_values(override: Override) -> list[str]:
    key = override.get_key_element()
    values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    if not values:
        raise InputError(f"{override.input_line}: has no values; the end of a range is not part of it")
    return values


class GridSweeper(RecordedSweeper):
    """Sweep over all combinations of the values, optionally with several seeds or folds.

    Args:
        seeds: number of seeds per point: `seed`, `seed + 1`, …
        folds: number of cross-validation folds per point (None: no cross-validation).
        file: text file with the overrides of one point per line, combined with each command-line point.
        max_points: maximum number of points, counting each seed and fold.
        changed_code: resume even if the code has changed since the sweep began.
    """

    def __init__(
        self,
        seeds: Annotated[int, Range(1)] = 1,
        folds: Annotated[int, Range(2)] | None = None,
        file: str | None = None,
        max_points: Annotated[int, Range(1)] = 10_000,
        changed_code: bool = False,
    ) -> None:
        super().__init__(seeds, folds, changed_code)
        self.file = file
        self.max_points = max_points

    def run_jobs(self, overrides: Sequence[str], jobs: list[Job]) -> int:
        is_new = not jobs
        jobs = jobs or self._make_jobs(overrides)
        with waiting(f"checking {plural(len(jobs), 'job')}"):
            targets = self.check_jobs(jobs)
        if is_new:
            self.folder.ledger.write(*jobs)
        return self.run_source(JobList(jobs), jobs, len(jobs), targets)

    def _make_jobs(self, overrides: Sequence[str]) -> list[Job]:
        limit = PointLimit(self.max_points, self.seeds * (self.folds or 1))
        if self.file is None:
            points = grid(overrides, self.loader, limit)
        else:
            points = read_points(self.file, overrides, self.loader, limit)
        given, points = len(points), drop_duplicates(points)
        if given > len(points):
            print(f"left out {plural(given - len(points), 'point')} equal to an earlier one")
        if (number := len(points) * limit.repeats) > MANY_JOBS:
            print(f"{number:,} jobs: all of them are checked before the first one starts", flush=True)
        extras = [list(repetitions(point, self.config.seed, self.seeds, self.folds)) for point in points]
        digits = len(str(sum(map(len, extras)) - 1))
        jobs: list[Job] = []
        for number, (point, own) in enumerate(zip(points, extras, strict=True)):
            jobs += make_jobs(len(jobs), number, point, own, digits)
        return jobs
