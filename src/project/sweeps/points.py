"""What a sweep goes through: the grid of its overrides, repeated over seeds and folds."""

import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from project.checks.arguments import repeated as repeated_keys
from project.checks.values import is_whole
from project.config_files import read_text
from project.errors import InputError, one_line
from project.sweeps.jobs import Job, folder_name


class Point:
    """Values of the swept keys, and the overrides that all points share.

    Args:
        constant: overrides without choices.
        varied: overrides, one value each.
    """

    def __init__(self, constant: Sequence[str], varied: Sequence[str]) -> None:
        self.constant = list(constant)
        self.varied = list(varied)


COMMENT = re.compile(r"(^|\s)#.*")


def grid(overrides: Sequence[str], loader: ConfigLoader) -> list[Point]:
    """Every combination of the values that Hydra's sweep grammar lists (a,b; range; choice; glob).

    Raises:
        InputError: an interval, which has no end of values.
    """
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    constant = [override.input_line or "" for override in parsed if not override.is_sweep_override()]
    swept = [list(_values(override)) for override in parsed if override.is_sweep_override()]
    return [Point(constant, values) for values in product(*swept)]


def listed(file: str, overrides: Sequence[str], loader: ConfigLoader) -> list[Point]:
    """The points of a file, one line of overrides each, every one with every point of the command line.

    Args:
        file: its path; empty lines, and what follows a # at the start of a word, do not count.
        overrides: of the command line.
        loader: Hydra's, for `glob`.

    Raises:
        InputError: the file cannot be read, or a line is none of overrides.
    """
    try:
        lines = read_text(Path(file)).splitlines()
    except InputError as error:
        raise InputError(f"hydra.sweeper.file={error}") from error
    points: list[Point] = []
    for number, line in enumerate(lines, start=1):
        try:
            texts = shlex.split(COMMENT.sub("", line))
            if problems := list(repeated_keys(texts)):
                raise InputError(problems[0])
            own = grid(texts, loader) if texts else []
        except (HydraException, InputError, ValueError) as error:
            raise InputError(f"hydra.sweeper.file={file}: line {number}: {one_line(error)}") from error
        for shared in grid(overrides, loader):
            points += [Point(shared.constant, [*shared.varied, *one.constant, *one.varied]) for one in own]
    if not points:
        raise InputError(f"hydra.sweeper.file={file}: no line with overrides, such as model=cnn optim.lr=0.1")
    return points


def refuse_repeats(seeds: int, folds: int | None) -> None:
    """Raise an InputError unless these are numbers of seeds and folds."""
    if not is_whole(seeds, 1):
        raise InputError(f"seeds={seeds}: give a whole number from 1")
    if folds is not None and not is_whole(folds, 2):
        raise InputError(f"folds={folds}: give a whole number from 2, or null")


def repeated(point: Point, base_seed: int, seeds: int, folds: int | None) -> Iterator[list[str]]:
    """Yield, for each job of a point, what it adds to the point's overrides.

    Raises:
        InputError: the point sets a seed or fold itself.
    """
    keys = {override.partition("=")[0] for override in point.varied}
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


def _values(override: Override) -> Iterator[str]:
    if not override.is_discrete_sweep():
        raise InputError(
            f"{override.input_line}: a grid needs single values, as in "
            f"{override.key_or_group}=0.1,0.01; hydra/sweeper=optuna searches intervals"
        )
    key = override.get_key_element()
    values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    if not values:
        raise InputError(f"{override.input_line}: has no values; the end of a range is not part of it")
    return iter(values)
