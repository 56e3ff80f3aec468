"""In which keys of their configurations runs differ, and which of those tell the rest."""

import json
from collections.abc import Sequence
from typing import Any

from project.runs.hparams import LEFT_OUT
from project.runs.ranking import REPETITIONS
from project.runs.results import ClassName, Run

NO_HYPERPARAMETERS = (
    "paths",
    "data.image_cache",
    "logger",
    "name",
    "ckpt_path",
    "resume",
    "callbacks.pruning",
    "callbacks.progress",
    "callbacks.measurements",
    "callbacks.story",
)
PRIVATE = (*LEFT_OUT, "dirpath", "_partial_", "_convert_", "_recursive_")
ABSENT = "–"


class Differences:
    """The keys in which runs differ.

    Left out are what is no hyperparameter and what copies another key (`data.augment.mixup`, `data.seed`).
    Some of the others only follow: `model.widths` where it is the same for every run with this `model`, and
    nobody set it on a command line. `augment=affine` and `experiment=mnist_mlp` change no class but many
    values: there the option's name tells all that follow from it.

    Args:
        runs: at least one.

    Attributes:
        keys: all of them, without repetitions.
        repetitions: those of `REPETITIONS` that differ.
        told: those of `keys`, and groups by their option's name, from which the others follow.
        following: the others.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self._places = {run.folder: place for place, run in enumerate(runs)}
        self.overridden = {key for run in runs for key in run.overrides}
        self._vectors = _differing([run.config for run in runs])
        own = [key for key in self._vectors if not self._is_copy(key) and not _is_private(key)]
        self.repetitions = [key for key in own if key in REPETITIONS]
        self.keys = [key for key in own if key not in REPETITIONS]
        self._labels = self._name_options()
        self.told = self._tell()
        self.following = [key for key in self.keys if key not in self.told]

    def value(self, run: Run, key: str) -> Any:
        """A run's value of a key of the configuration or option of a group; `ABSENT` if it has none."""
        if key in self._labels:
            return self._labels[key][self._places[run.folder]]
        return run.config.get(key, ABSENT)

    def texts(self, runs: Sequence[Run], key: str) -> list[str]:
        """The values of a key to be read: classes by their last name where that is enough."""
        values = [self.value(run, key) for run in runs]
        full = {value for value in values if isinstance(value, ClassName)}
        short = len({_last(name) for name in full}) == len(full)
        return [_last(value) if short and isinstance(value, ClassName) else text(value) for value in values]

    def signature(self, run: Run) -> tuple[str, ...]:
        """What runs have in common that differ in nothing but repetitions."""
        return tuple(frozen(run.config.get(key, ABSENT)) for key in self.keys)

    def _is_copy(self, key: str) -> bool:
        """Whether another key has the same value in every run and this one has it from there."""
        if key in self.overridden:
            return False
        return any(
            other != key
            and vector == self._vectors[key]
            and (
                other in self.overridden or (_last(other) == _last(key) and other.count(".") < key.count("."))
            )
            for other, vector in self._vectors.items()
        )

    def _name_options(self) -> dict[str, list[str]]:
        """Options by which keys that nobody set one by one differ: for each run, group by group."""
        labels = {}
        groups = {key for key in self.overridden if "." not in key and key not in self.keys}
        for group in sorted(groups):
            keys = [
                key
                for key in self.keys
                if key not in self.overridden and (group == "experiment" or key.startswith(f"{group}."))
            ]
            signatures = list(zip(*(self._vectors[key] for key in keys), strict=True))
            options = [run.overrides.get(group, "") for run in self.runs]
            # A run that was told nothing has an option too: that of the runs with the same values.
            known = {
                signature: option for signature, option in zip(signatures, options, strict=False) if option
            }
            named = [known.get(signature, ABSENT) for signature in signatures]
            if len(set(named)) > 1:
                labels[group] = named
        return labels

    def _tell(self) -> list[str]:
        """Choose the keys to be shown: what was set on command lines first, then what does not follow."""
        told = ["experiment"] if "experiment" in self._labels else []
        told += [group for group in self._labels if group != "experiment"]
        told += [key for key in self.keys if key in self.overridden]
        is_class = {
            key: any(isinstance(run.config.get(key), ClassName) for run in self.runs) for key in self.keys
        }
        for key in sorted(self.keys, key=lambda key: not is_class[key]):  # stable: else their order
            if key not in told and not any(
                self._follows(key, leader)
                for leader in told
                if leader == "experiment" or key.startswith(f"{leader}.")
            ):
                told.append(key)
        return told

    def _follows(self, key: str, leader: str) -> bool:
        leading = self._labels.get(leader) or self._vectors[leader]
        return len(set(zip(leading, self._vectors[key], strict=True))) == len(set(leading))


def _differing(configs: Sequence[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    """The keys that do not have the same value everywhere, each with its values."""
    vectors = {}
    for key in dict.fromkeys(key for config in configs for key in config):
        values = [config.get(key, ABSENT) for config in configs]
        kind, first = type(values[0]), values[0]
        if all(type(value) is kind and value == first for value in values):
            continue  # most keys: told quickly
        vector = tuple(map(frozen, values))
        if len(set(vector)) > 1:
            vectors[key] = vector
    return vectors


def short_names(keys: Sequence[str], taken: Sequence[str] = ()) -> dict[str, str]:
    """Shorten dotted keys to the last parts that no other of them ends in: `lr` for `optim.lr`.

    Args:
        keys: full.
        taken: names that none may get.
    """
    short = {}
    for key in keys:
        parts = key.split(".")
        for start in reversed(range(len(parts))):
            name = ".".join(parts[start:])
            others = [other for other in keys if other != key and f".{other}".endswith(f".{name}")]
            if name not in taken and not others:
                break
        short[key] = name
    return short


def text(value: object) -> str:
    """A value of a configuration, short and as one would type it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), default=str)


def frozen(value: object) -> str:
    """Equal for equal values: 1 and 1.0 are, 1, true and '1' are not."""
    return repr(float(value)) if type(value) is int else repr(value)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _is_private(key: str) -> bool:
    inside = any(key == name or key.startswith(f"{name}.") for name in NO_HYPERPARAMETERS)
    return inside or _last(key) in PRIVATE
