"""Content of a run folder; missing and damaged files are treated as empty."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from project.errors import InputError
from project.runs.migrations import migrate
from project.runs.results import is_number
from project.runs.run_folder import RunFolder
from project.runs.sweep_folder import find_sweep
from project.runtime import yaml_files
from project.runtime.csv_files import read_metrics

LOG_BYTES = 2**18
"""Maximum number of bytes read from the end of a log."""
PARAMETERS = re.compile(r"(?:^|\])\s*model\s+\S.*?\s([\d,]+) parameters$", re.MULTILINE)


class RunData:
    """Content of a run folder.

    Attributes:
        state: `done`, `pruned`, `paused`, `failed`, `interrupted`, `starting`, `running` or `unknown`.
        choices: selected option of each configuration group.
        metrics: last value of each metric.
        series: all logged values of each metric.
        num_epochs: number of epochs, including an unfinished last one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.run = RunFolder(folder)
        self.status = self.run.read_status()
        config = _read_yaml(self.run.config_file) or _read_yaml(self.run.composed_file)
        self.config = migrate(as_mapping(config))
        self.config_text = _read_end(self.run.config_file) or _read_end(self.run.composed_file)
        overrides = _read_yaml(self.run.path / ".hydra" / "overrides.yaml")
        self.overrides = [word for word in overrides or [] if isinstance(word, str)]
        hydra = as_mapping(as_mapping(_read_yaml(self.run.hydra_file)).get("hydra"))
        choices = as_mapping(as_mapping(hydra.get("runtime")).get("choices"))
        self.choices = {key: value for key, value in choices.items() if isinstance(value, str)}
        self.state = str(self.status.get("state", "unknown"))
        self.monitor = str(self.status.get("monitor") or self.config.get("monitor") or "")
        metrics = as_mapping(self.status.get("metrics"))
        self.metrics = {str(name): float(value) for name, value in metrics.items() if is_number(value)}
        duration_s = self.status.get("duration_s")
        self.duration_s = float(duration_s) if is_number(duration_s) else None
        logs = [self.run.path / "train.log", *sorted(self.run.path.glob("*.log"))]
        self.log = next(filter(None, map(_read_end, logs)), "")
        found = PARAMETERS.search(self.log)
        self.num_parameters = int(found[1].replace(",", "")) if found else None
        self.series = read_series(self.run.path / "metrics.csv")
        trained = [one.epochs for name, one in self.series.items() if not name.startswith("test/")]
        self.num_epochs = int(max((max(epochs) + 1 for epochs in trained), default=0))

    def group(self, name: str) -> dict[str, Any]:
        """Return a configuration group, such as `model`; empty if it is missing."""
        return as_mapping(self.config.get(name))

    def class_name_of(self, group: str) -> str:
        """Return the class name in a group's `_target_`, or an empty string."""
        return str(self.group(group).get("_target_", "")).rpartition(".")[2]

    @property
    def command(self) -> list[str]:
        """Words of the command that started the run; for a job, of the command that started its sweep."""
        if (sweep := find_sweep(self.run.path.parent)) is not None:
            return sweep.read_command()  # a resumed sweep passes other words to its jobs
        words = self.status.get("command")
        return list(map(str, words)) if isinstance(words, list) else []

    @property
    def case_name(self) -> str:
        """Name of the cases that metrics count: `images`, or `rows` for tables."""
        shape = self.group("data").get("input_shape")
        return "rows" if isinstance(shape, list) and len(shape) < 3 else "images"

    def best_index(self) -> int | None:
        """Return the index of the best value in the series of the monitored metric; None without values."""
        monitored = self.series.get(self.monitor, Series())
        sign = -1.0 if (self.status.get("mode") or self.config.get("mode")) == "min" else 1.0
        found = [
            (sign * value, -place) for place, value in enumerate(monitored.values) if math.isfinite(value)
        ]
        return -max(found)[1] if found else None


def _read_end(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - LOG_BYTES))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def _read_yaml(file: Path) -> Any:
    try:
        return yaml_files.read_yaml(file)
    except InputError:
        return None


def as_mapping(value: Any) -> dict[str, Any]:
    """Return `value` if it is a dict, otherwise an empty dict."""
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class Series:
    """Logged values of one metric."""

    steps: list[float] = field(default_factory=list)  # optimizer steps before each value
    epochs: list[float] = field(default_factory=list)  # epoch of each value, from 0
    values: list[float] = field(default_factory=list)


def read_series(file: Path) -> dict[str, Series]:
    """Read the series of each metric in `metrics.csv`; rows without a value are skipped."""
    found: dict[str, Series] = {}
    try:
        head, rows = read_metrics(file)
    except OSError:
        return {}
    if not head:
        return {}
    step, epoch = head.index("step"), head.index("epoch") if "epoch" in head else None
    columns = [(place, name) for place, name in enumerate(head) if name not in ("step", "epoch")]
    tests = [place for place, name in columns if name.startswith("test/")]
    for row in rows:
        # The row of the test holds the number of finished epochs, other rows hold the index of the epoch.
        is_test = any(row[place] for place in tests)
        for place, name in columns:
            if not row[place] or (epoch is not None and not row[epoch]):
                continue
            at = float(row[step]), float(row[epoch]) - is_test if epoch is not None else 0.0
            if all(map(math.isfinite, at)):
                series = found.setdefault(name, Series())
                series.steps.append(at[0])
                series.epochs.append(at[1])
                series.values.append(float(row[place]))
    return found


def steps_per_epoch(series: Mapping[str, Series]) -> float | None:
    """Return the optimizer steps per epoch, by the last value in each; None if epochs differ in length."""
    ends: dict[float, float] = {}
    for one in series.values():
        for step, epoch in zip(one.steps, one.epochs, strict=True):
            ends[epoch] = max(step, ends.get(epoch, 0.0))
    last = max(ends, default=-1.0)
    finished = {epoch: end for epoch, end in ends.items() if epoch < last} or ends
    sizes = [end / (epoch + 1) for epoch, end in finished.items()]
    if last < 1 or not sizes or min(sizes) <= 0 or max(sizes) > 1.02 * min(sizes):
        return None
    return max(sizes)
