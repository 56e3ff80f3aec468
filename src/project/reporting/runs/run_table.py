"""Columns of a table of runs, conditions on them, and the order of rows."""

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from project.config.command_options import CONDITION
from project.errors import InputError
from project.reporting.compare import choose_metrics
from project.reporting.runs.run_index import Record, elapsed_s
from project.runs.comparison import Comparison, compare_runs
from project.runs.hparam_diff import ABSENT, Differences, short_names
from project.runs.results import ClassName, format_value, is_number
from project.runtime.text import did_you_mean

FACTS: Mapping[str, Callable[[Record], Any]] = {
    "name": lambda record: record.name,
    "folder": lambda record: record.key,
    "state": lambda record: record.state,
    "epoch": lambda record: record.epoch,
    "started": lambda record: record.started or None,
    "time": elapsed_s,
    "tags": lambda record: record.notes.tags,
    "note": lambda record: record.notes.note,
    "error": lambda record: record.error,
}
"""Columns that every table has."""
WORDS = {"true": True, "false": False, "null": None}
MAX_CHOICES = 12


@dataclass(frozen=True)
class Column:
    """Column of a table of runs.

    Args:
        name: full name, such as `optim.lr`.
        title: shortest unambiguous name.
        kind: `fact`, `key` or `metric`.
    """

    name: str
    title: str
    kind: Literal["fact", "key", "metric"]


class RunTable:
    """Table of runs.

    Args:
        records: runs and waiting jobs.
        previous: table whose comparison is kept if only values of unfinished runs changed.

    Attributes:
        columns: name, state, epoch, keys that differ, metrics, time, start and tags.
    """

    def __init__(self, records: Sequence[Record], previous: "RunTable | None" = None) -> None:
        self.records = list(records)
        self.runs = [record.run for record in records if record.run is not None]
        self.comparison: Comparison | None
        self.differences: Differences | None
        if previous is not None and previous.has_same_results(self.records):
            self.comparison, self.differences = previous.comparison, previous.differences
        else:
            self.comparison = self._compare()
            kept = self.comparison.everywhere if self.comparison else None
            self.differences = kept or (Differences(self.runs) if self.runs else None)
        self.metrics = list(dict.fromkeys(name for record in records for name in record.metrics))
        self._keys = dict.fromkeys(key for run in self.runs for key in run.config)
        self._keys |= dict.fromkeys(key for record in records for key in record.settings or ())
        self._classes = {  # of options, as a waiting job names its class by its option
            (key, option): run.config[key]
            for run in self.runs
            for key, option in run.overrides.items()
            if isinstance(run.config.get(key), ClassName)
        }
        self._labels: dict[str, dict[str, str]] = {}
        self.columns = self._columns()

    def has_same_results(self, records: Sequence[Record]) -> bool:
        """Return True if records have the configurations and the finished runs of this table."""
        if len(records) != len(self.records):
            return False
        return all(map(_has_same_result, self.records, records))

    def _compare(self) -> Comparison | None:
        if not any(run.done for run in self.runs):
            return None
        return compare_runs(self.runs, guess=True)

    @property
    def monitor(self) -> str:
        """Metric by which the runs are ranked; empty if there is none."""
        if self.comparison is not None:
            return self.comparison.by
        return next((run.monitor for run in self.runs if run.monitor), "")

    @property
    def larger_is_better(self) -> bool:
        """True if larger values of `monitor` are better."""
        if self.comparison is not None:
            return self.comparison.larger_is_better
        return next((run.mode for run in self.runs if run.monitor), "max") != "min"

    def _columns(self) -> list[Column]:
        found = self.differences
        keys = [*found.leading, *found.repetitions] if found else []
        keys += [key for record in self.records for key in record.settings or () if not record.run]
        keys = list(dict.fromkeys(keys))
        titles = short_names(keys, tuple(FACTS))
        metrics = choose_metrics(self.metrics, self.monitor) if self.monitor in self.metrics else self.metrics
        columns = [Column(name, name, "fact") for name in ("name", "state", "epoch")]
        columns += [Column(key, titles[key], "key") for key in keys]
        columns += [Column(name, name, "metric") for name in metrics]
        return columns + [Column(name, name, "fact") for name in ("time", "started", "tags")]

    def column(self, name: str, key: str) -> Column:
        """Return the column that a user names in full or by an unambiguous last part.

        Args:
            name: `optim.lr` or `lr`, `val/acc`, `state`.
            key: key and value on the command line, for messages.

        Raises:
            InputError: there is no such column, or there are several.
        """
        for column in self.columns:
            if name in (column.name, column.title):
                return column
        if name in FACTS or name in self.metrics or name in self._keys:
            kind = "fact" if name in FACTS else "metric" if name in self.metrics else "key"
            return Column(name, name, kind)  # type: ignore[arg-type]
        ends = [other for other in self._keys if other.endswith(f".{name}")]
        ends += [other for other in self.metrics if other.endswith(f"/{name}")]
        known = {column.name for column in self.columns}
        several = [other for other in ends if other in known] or ends
        if len(several) == 1:
            return Column(several[0], name, "metric" if several[0] in self.metrics else "key")
        if several:
            raise InputError(f"{key}: {name} is ambiguous; write {' or '.join(several[:MAX_CHOICES])}")
        names = [one for column in self.columns for one in (column.title, column.name)]
        names += [*FACTS, *self._keys, *(other.rpartition(".")[2] for other in self._keys)]
        raise InputError(f"{key}: no column {name}; {did_you_mean(name, names)}")

    def value(self, record: Record, column: Column) -> Any:
        """Return the value of a record in a column; None without one."""
        if column.kind == "fact":
            return FACTS[column.name](record)
        if column.kind == "metric":
            return record.metrics.get(column.name)
        if record.run is None:
            option = (record.settings or {}).get(column.name)
            return option and self._classes.get((column.name, option), _parse(option))
        value = self.differences.value(record.run, column.name) if self.differences else ABSENT
        return None if value is ABSENT or value == ABSENT else value

    def text_or_number(self, record: Record, column: Column) -> str | float | None:
        """Return a value for a page: a number, or a string; None without one."""
        value = self.value(record, column)
        if value is None or (is_number(value) and math.isfinite(value)):
            return value
        if isinstance(value, ClassName):
            return self._class_title(column.name, value)
        return ", ".join(value) if isinstance(value, tuple) else format_value(value)

    def _class_title(self, key: str, name: ClassName) -> str:
        """Return a class name without its module if that is unambiguous, as in all tables."""
        if key not in self._labels:
            assert self.differences is not None
            texts = self.differences.texts(self.runs, key)
            self._labels[key] = {
                str(run.config.get(key)): text for run, text in zip(self.runs, texts, strict=True)
            }
        return self._labels[key].get(name, name)

    def select(self, conditions: Iterable[str]) -> list[Record]:
        """Return the records that meet all conditions.

        Args:
            conditions: `COLUMN=VALUE`, with one of `=`, `!=`, `<`, `<=`, `>`, `>=`, and `~` (contains). A
                value may be several, separated by commas, and contain `*`. A word without an operator is
                searched in names, tags, notes and keys.

        Raises:
            InputError: there is no such column, or a condition has no value.
        """
        tests = [self._test(text) for text in conditions]
        return [record for record in self.records if all(test(record) for test in tests)]

    def _test(self, text: str) -> Callable[[Record], bool]:
        found = CONDITION.fullmatch(text)
        if found is None:
            word = text.lower()
            return lambda record: any(word in part.lower() for part in self._words(record))
        name, operator, wanted = found.groups()
        column = self.column(name, text)
        if not wanted:
            raise InputError(f"{text}: no value (expected {name}{operator}VALUE); null means none")
        if operator in ("<", "<=", ">", ">="):
            limit = _parse(wanted)
            is_time = column.name == "started"
            if not is_number(limit) and not is_time:
                raise InputError(f"{text}: cannot be ordered (expected a number, got '{wanted}'); use = or ~")
            values = [self.value(record, column) for record in self.records]
            if not is_time and values and all(isinstance(value, str | tuple | bool) for value in values):
                raise InputError(f"{text}: {name} is text (expected a number to compare); use = or ~")
            return lambda record: _is_ordered(
                self.value(record, column), operator, wanted if is_time else limit
            )
        if operator == "~":
            return lambda record: wanted.lower() in " ".join(self._texts(record, column)).lower()
        choices = dict.fromkeys([wanted, *wanted.split(",")])  # a list such as [128,64] is one value
        return lambda record: (operator == "=") == any(self._equals(record, column, one) for one in choices)

    def _words(self, record: Record) -> list[str]:
        keys = [column for column in self.columns if column.kind == "key"]
        texts = [str(self.text_or_number(record, column)) for column in keys]
        return [record.key, record.state, record.error, record.notes.note, *record.notes.tags, *texts]

    def _texts(self, record: Record, column: Column) -> list[str]:
        """Return all ways to write a value: a class also by its name and by its option."""
        value = self.value(record, column)
        if isinstance(value, tuple):
            return list(value)
        texts = [format_value(value)]
        if isinstance(value, ClassName):
            texts.append(value.rpartition(".")[2])
        overrides = record.run.overrides if record.run else record.settings or {}
        if column.kind == "key" and not is_number(value) and column.name in overrides:
            texts.append(overrides[column.name])
        return texts

    def _equals(self, record: Record, column: Column, wanted: str) -> bool:
        number, value = _parse(wanted), self.value(record, column)
        if is_number(number) and is_number(value):
            return value == number
        pattern = wanted.strip("'\"").lower()
        texts = [text.lower() for text in self._texts(record, column)]
        return pattern in texts or any(fnmatch.fnmatchcase(text, pattern) for text in texts)

    def sorted(self, records: Sequence[Record], by: str) -> list[Record]:
        """Return records in the order of a column, descending after `-`; those without a value last.

        Raises:
            InputError: there is no such column.
        """
        column = self.column(by.removeprefix("-"), f"sort={by}")
        values = [(self.value(record, column), record) for record in records]
        known = [(value, record) for value, record in values if not _is_missing(value)]
        if all(is_number(value) for value, _ in known):
            known.sort(key=lambda pair: pair[0], reverse=by.startswith("-"))
        else:
            known.sort(key=lambda pair: str(pair[0]), reverse=by.startswith("-"))
        return [record for _, record in known] + [record for value, record in values if _is_missing(value)]


def _has_same_result(old: Record, new: Record) -> bool:
    if old.run is None or new.run is None:
        return old.key == new.key and old.run is new.run
    if old.run is new.run:
        return True
    if old.run.done or new.run.done or old.key != new.key:
        return False
    return old.run.config == new.run.config and old.run.overrides == new.run.overrides


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _parse(text: str | None) -> Any:
    """Return the number, true, false or None that a string stands for; other strings unchanged."""
    if text is None or text in WORDS:
        return None if text is None else WORDS[text]
    try:
        number = float(text)
    except ValueError:
        return text
    return int(text) if text.strip("-+").isdigit() else number


def _is_ordered(value: Any, operator: str, limit: Any) -> bool:
    if value is None or isinstance(value, str) != isinstance(limit, str) or isinstance(value, bool):
        return False
    if not isinstance(value, str) and not is_number(value):
        return False
    if operator.startswith("<"):
        return value < limit or (operator == "<=" and value == limit)
    return value > limit or (operator == ">=" and value == limit)
