"""The default sweeper: all combinations of the swept values, repeated over seeds and folds."""

import math
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256
from itertools import count, product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from project.config.resume import EXTENSION_KEYS
from project.config.validation.command_request import repeated as find_repeated
from project.errors import InputError, one_line
from project.runs.results import comparable_text, flatten
from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import Job, folder_name, to_override_value
from project.runtime.bounds import Range
from project.runtime.console import waiting
from project.runtime.secrets import redact_text
from project.runtime.text import plural
from project.runtime.yaml_files import raw_child, read_text
from project.sweeps.job_order import AS_WRITTEN, JobOrder
from project.sweeps.job_scheduler import JobList
from project.sweeps.sweepers.base import RecordedSweeper
from project.sweeps.sweepers.conditions import Conditions
from project.sweeps.sweepers.seed_race import MIN_SEEDS, SeedRace

MANY_JOBS = 500
"""Number of jobs above which a message announces the checks, which then take seconds."""


@dataclass
class Point:
    """Values of the swept keys, and the overrides that all points share."""

    constant: list[str]
    varied: list[str]

    @property
    def identity(self) -> frozenset[str]:
        """Value that is equal for points with the same overrides."""
        return frozenset((*self.constant, *self.varied))


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
        first.setdefault(point.identity, point)
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
            points += [replace_values(base, [*point.constant, *point.varied]) for point in own]
    if not points:
        raise InputError(f"hydra.sweeper.file={file}: no line with overrides, such as model=cnn optim.lr=0.1")
    return points


def replace_values(point: Point, values: Iterable[str]) -> Point:
    """Return a point with other values of some keys, which then vary; a key added with `+` keeps its `+`."""
    added = {_key(text) for text in (*point.constant, *point.varied) if text.startswith("+")}
    given = {_key(text): f"+{text.lstrip('+')}" if _key(text) in added else text for text in values}
    constant = [text for text in point.constant if _key(text) not in given]
    varied = [given.pop(_key(text), text) for text in point.varied]
    return Point(constant, [*varied, *given.values()])


def recorded_points(jobs: Iterable[Job], folds: int | None) -> dict[int, Point]:
    """Return the points of recorded jobs by their numbers, without the seeds and folds that repeat them."""
    repeated: dict[int, list[Job]] = {}
    for job in jobs:
        repeated.setdefault(job.point, []).append(job)
    points = {}
    for number, group in sorted(repeated.items()):
        seeds = {next((text for text in job.overrides if _key(text) == "seed"), "") for job in group}
        added = [*(["seed"] if len(seeds) > 1 else []), *(["data.folds", "data.fold"] if folds else [])]
        varied = [text for text in group[0].varied if _key(text) not in added]
        shared = {*map(_key, varied), *added}
        points[number] = Point([text for text in group[0].overrides if _key(text) not in shared], varied)
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
        only_if: conditions under which swept keys apply (see `Conditions`).
        max_points: maximum number of points, counting each seed and fold.
        timeout_s: time since the first job after which no job starts [s] (None: no limit).
        eliminate_confidence: points that are worse than the best one at this confidence get no more seeds
            (None: all points get all seeds); see `SeedRace`.
        order: `longest_first` starts the jobs that last longest first (see `JobOrder`).
        priority: for some keys, the values whose jobs start first (see `JobOrder`).
        changed_code: resume even if the code has changed since the sweep began.
    """

    can_be_joined = True

    def __init__(
        self,
        seeds: Annotated[int, Range(1)] = 1,
        folds: Annotated[int, Range(2)] | None = None,
        file: str | None = None,
        only_if: Mapping[str, str] | None = None,
        max_points: Annotated[int, Range(1)] = 10_000,
        timeout_s: Annotated[float, Range(above=0)] | None = None,
        eliminate_confidence: Annotated[float, Range(0.5, below=1)] | None = None,
        order: Literal["as_written", "longest_first"] = "as_written",
        priority: Mapping[str, Any] | None = None,
        changed_code: bool = False,
    ) -> None:
        super().__init__(seeds, folds, changed_code)
        self.file = file
        self.only_if = dict(only_if or {})
        self.max_points = max_points
        self.timeout_s = timeout_s
        self.eliminate_confidence = eliminate_confidence
        self.order = JobOrder(order == "longest_first", dict(priority or {}))

    def run_jobs(self, overrides: Sequence[str], jobs: list[Job]) -> int:
        seeds = max(Counter(job.point for job in jobs).values(), default=1) // (self.folds or 1)
        if self.seeds < seeds and any(text.startswith("seeds=") for text in self.extension):
            raise InputError(
                f"seeds={self.seeds}: {self.folder.shown} has {seeds} seeds per point; give more, or leave "
                "this out"
            )
        self.seeds = max(self.seeds, seeds)
        self._refuse_elimination()
        changed: list[Job] = []
        if self.extension:
            new, changed = self._extend(jobs)
        else:
            new = [] if jobs else self._make_jobs(overrides)
        jobs = [*jobs, *new]
        source = self._make_source(jobs)
        with waiting(f"checking {plural(len(jobs), 'job')}"):
            targets = self.check_jobs(jobs)
        if new:
            self.folder.ledger.add(*changed, *new)
        return self.run_source(source, jobs, len(jobs), targets)

    def _refuse_elimination(self) -> None:
        if self.eliminate_confidence is None:
            return
        given = f"hydra.sweeper.eliminate_confidence={self.eliminate_confidence}"
        if self.order != AS_WRITTEN:
            raise InputError(
                f"{given}: trains the seeds of all points in turn; leave out hydra.sweeper.order and priority"
            )
        if self.folds is not None or self.seeds <= MIN_SEEDS:
            raise InputError(
                f"{given}: compares points over more than {MIN_SEEDS} seeds, without folds (got "
                f"seeds={self.seeds}, folds={'null' if self.folds is None else self.folds}); raise seeds"
            )

    def _make_source(self, jobs: Sequence[Job]) -> JobList:
        if self.eliminate_confidence is None:
            for job in jobs:
                if job.state == "eliminated":  # by an earlier process of this sweep
                    job.state, job.error = "waiting", None
            return JobList(jobs, timeout_s=self.timeout_s, order=self.order)
        is_larger_better = self.config.get("mode", "max") == "max"
        return SeedRace(
            jobs, self.eliminate_confidence, larger_is_better=is_larger_better, timeout_s=self.timeout_s
        )

    def _join(self, folder: SweepFolder, given: Sequence[str]) -> None:
        if self.eliminate_confidence is not None:
            raise InputError(
                f"join=true: {folder.shown} leaves out jobs while it runs (hydra.sweeper."
                "eliminate_confidence); give its own process more devices"
            )
        super()._join(folder, given)

    def refuse_extension(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            raise InputError(
                f"{self.extension[0]}: no job of {self.folder.shown} was recorded; start a new sweep"
            )

    @property
    def _limit(self) -> PointLimit:
        return PointLimit(self.max_points, self.seeds * (self.folds or 1))

    def _read_points(self, overrides: Sequence[str], file: str | None) -> list[Point]:
        if file is None:
            return grid(overrides, self.loader, self._limit)
        return read_points(file, overrides, self.loader, self._limit)

    def _make_conditions(self, points: Collection[Point], known: Iterable[str] = ()) -> Conditions:
        """Return the conditions for points and `known` keys, which no point may have."""
        keys = dict.fromkeys([*known, *(_key(text) for point in points for text in point.varied)])
        constant = next((point.constant for point in points), [])
        return Conditions(self.only_if, constant, keys)

    def _make_jobs(self, overrides: Sequence[str]) -> list[Job]:
        points = self._read_points(overrides, self.file)
        conditions = self._make_conditions(points)
        given, points = (
            len(points),
            drop_duplicates([Point(point.constant, conditions.keep(point.varied)) for point in points]),
        )
        if given > len(points):
            print(f"left out {plural(given - len(points), 'point')} equal to an earlier one")
        self._announce(len(points))
        extras = [list(repetitions(point, self.config.seed, self.seeds, self.folds)) for point in points]
        digits = len(str(sum(map(len, extras)) - 1))
        jobs: list[Job] = []
        for number, (point, own) in enumerate(zip(points, extras, strict=True)):
            jobs += make_jobs(len(jobs), number, point, own, digits)
        return jobs

    def _extend(self, jobs: Sequence[Job]) -> tuple[list[Job], list[Job]]:
        """Make the jobs that an extension adds.

        Each point on record is combined with the values of the extension, and each point is repeated with all
        seeds and folds. Jobs whose configuration is on record already are left out.

        Returns:
            The new jobs, and those on record whose settings now contain further keys.
        """
        configs = {job.number: self.compose(job) for job in jobs}
        added = self._added_points(recorded_points(jobs, self.folds).values())
        changed = _add_settings(jobs, configs, added)
        points = recorded_points(jobs, self.folds)  # with the values of the keys that vary now
        points |= zip(count(max(points) + 1), added, strict=False)
        self._announce(len(points))
        known = set(map(_config_hash, configs.values()))
        digits = len(str(len(points) * self._limit.repeats - 1))
        new: list[Job] = []
        for number, point in points.items():
            for extra in repetitions(point, self.config.seed, self.seeds, self.folds):
                (job,) = make_jobs(len(jobs) + len(new), number, point, [extra], digits)
                if (identity := _config_hash(self.compose(job))) not in known:
                    known.add(identity)
                    new.append(job)
        print(f"{self.folder.shown}: {plural(len(new), 'new job')}")
        changed |= _add_settings(jobs, configs, new)  # the seed
        return new, [job for job in jobs if job.number in changed]

    def _added_points(self, recorded: Collection[Point]) -> list[Point]:
        """Combine the points on record with the values of the extension, without those on record."""
        values = [text for text in self.extension if not text.startswith(EXTENSION_KEYS)]
        refuse_secrets(OverridesParser.create(config_loader=self.loader).parse_overrides(values))
        has_file = any(text.startswith("hydra.sweeper.file=") for text in self.extension)
        if not values and not has_file:
            return []
        given = self._read_points(values, self.file if has_file else None)
        conditions = self._make_conditions([*recorded, *given], known=self.only_if)
        known = {point.identity for point in recorded}
        added: dict[frozenset[str], Point] = {}
        for earlier, own in product(recorded, given):
            point = replace_values(earlier, [*own.constant, *own.varied])
            point = Point(point.constant, conditions.keep(point.varied))
            if point.identity not in known:
                added.setdefault(point.identity, point)
                self._limit.refuse_more(len(known) + len(added), " ".join(self.extension))
        return list(added.values())

    def _announce(self, num_points: int) -> None:
        """Print a line before checks that take long."""
        if (number := num_points * self._limit.repeats) > MANY_JOBS:
            print(f"{number:,} jobs: all of them are checked before the first one starts", flush=True)


def _config_hash(config: DictConfig) -> str:
    """Return a text that is equal for jobs with equal configurations."""
    values: Any = {str(key): raw_child(config, str(key)) for key in config if key != "hydra"}
    plain = {
        key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        for key, value in values.items()
    }
    pairs = sorted((key, comparable_text(value)) for key, value in flatten(plain, class_names=False).items())
    return sha256(repr(pairs).encode()).hexdigest()


def _add_settings(
    jobs: Iterable[Job], configs: Mapping[int, DictConfig], others: Iterable[Job | Point]
) -> set[int]:
    """Add the keys in which others vary to the settings of jobs; return the numbers of changed jobs."""
    keys = list(dict.fromkeys(text.partition("=")[0] for other in others for text in other.varied))
    changed = set()
    for job in jobs:
        config = configs[job.number]
        for key in keys:
            name = key.lstrip("+")
            value = config.hydra.runtime.choices.get(name, OmegaConf.select(config, name))
            if name not in job.settings and value is not None:
                job.varied = [*job.varied, f"{key}={_override_text(value)}"]
                changed.add(job.number)
    return changed


def _override_text(value: Any) -> str:
    """Format a value for an override, a word without quotes."""
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    is_word = isinstance(plain, str) and re.fullmatch(r"[A-Za-z][\w./-]*", plain)
    return str(plain) if is_word else to_override_value(plain)
