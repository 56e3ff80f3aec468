"""Hyperparameters of runs, and the keys in which runs differ."""

from collections.abc import Sequence
from typing import Any

from project.runs.ranking import REPETITIONS
from project.runs.results import ClassName, Run, comparable_text, format_value

ABSENT = "–"
LOGGED_KEYS = {
    "data": ("batch_size", "val_size"),
    "trainer": ("max_epochs", "precision", "accumulate_grad_batches", "gradient_clip_val"),
}
AUGMENT_MODES = {
    "crop_mode": "random_crop_padding",
    "flip_schedule": "flip_prob",
    **dict.fromkeys(("policy_num_ops", "policy_magnitude", "policy_severity"), "policy"),
    "initial_size_fraction": "full_size_epoch",
}
"""Augmentation keys that have an effect only if another key is not 0."""
OFF = (0, None, "none")
"""Values that switch an augmentation off."""
LEFT_OUT = ("input_shape", "num_classes", "random_erasing_prob", "fused")
"""Last parts of keys whose values follow from the data or other keys, or affect speed only."""
NO_HYPERPARAMETERS = (
    *("paths", "data.image_cache", "logger", "name", "ckpt_path", "resume"),
    *("callbacks.pruning", "callbacks.pause", "callbacks.progress", "callbacks.training_stats"),
    "callbacks.visuals",
)
PRIVATE = (*LEFT_OUT, "dirpath", "_partial_", "_convert_", "_recursive_")


def hyperparameters(config: dict[str, Any]) -> dict[str, Any]:
    """Return the values for TensorBoard's HParams page by dotted names.

    Values that follow from others and options that are switched off are omitted.
    """
    values: dict[str, Any] = {"seed": config["seed"]}
    for group in ("task", "model", "data", "optim", "scheduler", "loss"):
        if group in config:
            values[group] = config[group]["_target_"].rpartition(".")[2]
    for group in ("task", "model", "optim", "scheduler", "loss", "augment"):
        for name, value in config.get(group, {}).items():
            follows = name.startswith("_") or name in LEFT_OUT
            follows |= group == "task" and _is_copy(value, name, config)
            off = group == "augment" and config[group].get(AUGMENT_MODES.get(name, name)) in OFF
            if not follows and not off:
                values[f"{group}.{name}"] = value
    for group, names in LOGGED_KEYS.items():
        values |= {f"{group}.{name}": config[group][name] for name in names if name in config[group]}
    if config["data"].get("folds") is not None:
        values.pop("data.val_size", None)
        values |= {f"data.{name}": config["data"].get(name, 0) for name in ("folds", "fold")}
    return values


def _is_copy(value: Any, name: str, config: dict[str, Any]) -> bool:
    """Return True for an argument of the task that is a part, or repeats another key."""
    is_part = isinstance(value, str) and value.startswith("${")
    return is_part or any(name in node and node[name] == value for node in (config, config.get("optim", {})))


class Differences:
    """Keys in which runs differ.

    Keys that are not hyperparameters or that copy another key (`data.augment.mixup`, `data.seed`) are
    omitted. Some keys follow from others: `model.widths`, if every run with the same `model` has the same
    value and no command line sets it. Options such as `augment=affine` and `experiment=mnist_mlp` change many
    values but no class: the name of the option then leads, and the values follow.

    Args:
        runs: at least one.

    Attributes:
        keys: keys that differ, without repetitions.
        repetitions: keys of `REPETITIONS` that differ.
        leading: keys, and groups with named options, from which the other keys follow.
        following: the other keys.
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
        self.leading = self._find_leading()
        self.following = [key for key in self.keys if key not in self.leading]

    def value(self, run: Run, key: str) -> Any:
        """Return a run's value of a key, or the name of its option of a group; `ABSENT` without one."""
        if key in self._labels:
            return self._labels[key][self._places[run.folder]]
        return run.config.get(key, ABSENT)

    def texts(self, runs: Sequence[Run], key: str) -> list[str]:
        """Return the values of a key as text; classes without their module if that is unambiguous."""
        values = [self.value(run, key) for run in runs]
        full = {value for value in values if isinstance(value, ClassName)}
        short = len({_last(name) for name in full}) == len(full)
        return [
            _last(value) if short and isinstance(value, ClassName) else format_value(value)
            for value in values
        ]

    def signature(self, run: Run) -> tuple[str, ...]:
        """Return a value that is equal for runs that differ only in repetitions."""
        return tuple(comparable_text(run.config.get(key, ABSENT)) for key in self.keys)

    def _is_copy(self, key: str) -> bool:
        """Return True if a key takes its value from another key in every run."""
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
        """Return the option of each run, for groups whose differing keys no command line sets."""
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
            # A run without an override has the option of the runs with the same values.
            known = {
                signature: option for signature, option in zip(signatures, options, strict=False) if option
            }
            named = [known.get(signature, ABSENT) for signature in signatures]
            if len(set(named)) > 1:
                labels[group] = named
        return labels

    def _find_leading(self) -> list[str]:
        """Return the keys to show: overridden ones first, then those that follow from no other key."""
        leading = ["experiment"] if "experiment" in self._labels else []
        leading += [group for group in self._labels if group != "experiment"]
        leading += [key for key in self.keys if key in self.overridden]
        is_class = {
            key: any(isinstance(run.config.get(key), ClassName) for run in self.runs) for key in self.keys
        }
        for key in sorted(self.keys, key=lambda key: not is_class[key]):  # classes first, otherwise in order
            above = [other for other in leading if other == "experiment" or key.startswith(f"{other}.")]
            if key not in leading and not any(self._follows(key, other) for other in above):
                leading.append(key)
        return leading

    def _follows(self, key: str, other: str) -> bool:
        values = self._labels.get(other) or self._vectors[other]
        return len(set(zip(values, self._vectors[key], strict=True))) == len(set(values))


def _differing(configs: Sequence[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Return the keys with different values, and their values in each configuration."""
    vectors = {}
    for key in dict.fromkeys(key for config in configs for key in config):
        values = [config.get(key, ABSENT) for config in configs]
        kind, first = type(values[0]), values[0]
        if all(type(value) is kind and value == first for value in values):
            continue  # fast path for most keys
        vector = tuple(map(comparable_text, values))
        if len(set(vector)) > 1:
            vectors[key] = vector
    return vectors


def short_names(keys: Sequence[str], taken: Sequence[str] = ()) -> dict[str, str]:
    """Shorten dotted keys to unique last parts, such as `lr`, that are not in `taken`."""
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


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _is_private(key: str) -> bool:
    inside = any(key == name or key.startswith(f"{name}.") for name in NO_HYPERPARAMETERS)
    return inside or _last(key) in PRIVATE
