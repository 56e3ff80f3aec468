"""What a run's folder tells, whatever is missing or damaged in it."""

import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from project.errors import InputError
from project.runs.metrics_csv import read_metrics
from project.runs.run_folder import RunFolder
from project.runtime import yaml_files

LOG_BYTES = 2**18
"""Of a log's end that are read."""
PARAMETERS = re.compile(r"(?:^|\])\s*model\s+\S.*?\s([\d,]+) parameters$", re.MULTILINE)
AXES = ("step", "epoch")


@dataclass(frozen=True)
class Series:
    """What was logged under one name.

    Args:
        steps: optimizer steps done, rising.
        epochs: epochs begun before each value, from 0; as many.
        values: as many.
    """

    steps: list[float] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


class RunStory:
    """A run as its folder tells it. What is missing or damaged is empty.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: str | Path) -> None:
        self.run = RunFolder(folder)
        self.status = self.run.read_status()
        self.config = _mapping(_yaml(self.run.config_file) or _yaml(self.run.composed_file))
        self.overrides = [
            word for word in _yaml(self.run.path / ".hydra" / "overrides.yaml") or [] if isinstance(word, str)
        ]
        runtime = _mapping(_mapping(_mapping(_yaml(self.run.hydra_file)).get("hydra")).get("runtime"))
        self.choices = {
            key: value for key, value in _mapping(runtime.get("choices")).items() if isinstance(value, str)
        }

    @property
    def state(self) -> str:
        """`done`, `pruned`, `failed`, `interrupted`, `running`, or `unknown`."""
        return str(self.status.get("state", "unknown"))

    @property
    def monitor(self) -> str:
        """Name of the metric that was watched."""
        return str(self.status.get("monitor") or self.config.get("monitor") or "")

    @property
    def larger_is_better(self) -> bool:
        """Whether larger values of that metric are better."""
        return (self.status.get("mode") or self.config.get("mode")) != "min"

    @property
    def metrics(self) -> dict[str, float]:
        """What was measured last, by name."""
        given = _mapping(self.status.get("metrics"))
        return {str(name): float(value) for name, value in given.items() if _is_number(value)}

    @property
    def duration(self) -> float | None:
        """Seconds that the run took, if it has ended."""
        value = self.status.get("duration_s")
        return float(value) if isinstance(value, int | float) else None

    @property
    def parameters(self) -> int | None:
        """How many parameters the network has, if the log tells."""
        found = PARAMETERS.search(self.log)
        return int(found[1].replace(",", "")) if found else None

    def group(self, name: str) -> dict[str, Any]:
        """A group of the configuration, such as `model`."""
        return _mapping(self.config.get(name))

    def class_of(self, group: str) -> str:
        """The last part of a group's `_target_`, or an empty string."""
        return str(self.group(group).get("_target_", "")).rpartition(".")[2]

    @property
    def config_text(self) -> str:
        """The configuration as it was written."""
        file = self.run.config_file
        return read_end(file if file.exists() else self.run.composed_file)

    @cached_property
    def log(self) -> str:
        """The log, or the end of a long one."""
        file = self.run.path / "train.log"
        if not file.exists():
            file = next(iter(sorted(self.run.path.glob("*.log"))), file)
        return read_end(file)

    @cached_property
    def series(self) -> dict[str, Series]:
        """All that was logged, by name."""
        return read_table(self.run.path / "metrics.csv")

    @property
    def epochs(self) -> int:
        """How many epochs were trained, the last one perhaps in part."""
        ends = [
            max(series.epochs) + 1
            for name, series in self.series.items()
            if series.epochs and not name.startswith("test/")
        ]
        return int(max(ends, default=0))


def read_table(file: Path) -> dict[str, Series]:
    """Read a table as runs log it: each column with the rows in which it has a number."""
    found: dict[str, Series] = {}
    try:
        head, rows = read_metrics(file)
    except OSError:  # a page can do without
        return {}
    if not head:
        return {}
    step, epoch = head.index("step"), head.index("epoch") if "epoch" in head else None
    columns = [(place, name) for place, name in enumerate(head) if name not in AXES]
    tests = [place for place, name in columns if name.startswith("test/")]
    for row in rows:
        # The row of the test has the number of epochs that are done, others that of the one begun.
        done = any(row[place] for place in tests)
        for place, name in columns:
            if not row[place] or (epoch is not None and not row[epoch]):
                continue
            values = float(row[step]), float(row[epoch]) - done if epoch is not None else 0.0
            if not all(map(math.isfinite, values)):
                continue
            series = found.setdefault(name, Series())
            series.steps.append(values[0])
            series.epochs.append(values[1])
            series.values.append(float(row[place]))
    return found


def read_end(file: Path) -> str:
    """The end of a text file; empty if it cannot be read."""
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - LOG_BYTES))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def _yaml(file: Path) -> Any:
    try:
        return yaml_files.read_yaml(file)
    except InputError:
        return None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
