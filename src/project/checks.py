"""What can be known to be wrong with a configuration without torch: types, ranges, words, combinations."""

import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from project import hydra_guard, redaction, targets
from project.errors import InputError, one_line
from project.nearest import did_you_mean

ABOVE_0 = math.ulp(0.0)

RANGES: Mapping[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "data.batch_size": (1, math.inf),
    "data.eval_batch_size": (1, math.inf),
    "data.val_size": (0, math.inf),
    "data.test_size": (ABOVE_0, math.inf),
    "data.folds": (2, math.inf),
    "data.fold": (0, math.inf),
    "data.split_seed": (0, 2**63 - 1),
    "data.num_classes": (2, math.inf),
    "data.num_workers": (0, math.inf),
    "data.memory_budget_mb": (0, math.inf),
    "data.noise": (0, math.inf),
    "data.train_size": (1, math.inf),
    "data.input_shape": (1, math.inf),
    "model.channels": (1, math.inf),
    "model.depth": (1, math.inf),
    "model.dim": (1, math.inf),
    "model.heads": (1, math.inf),
    "model.widths": (1, math.inf),
    "model.dropout": (0, 1),
    "model.hidden": (1, math.inf),
    "model.layers": (1, math.inf),
    "model.width": (1, math.inf),
    "model.patch_size": (1, math.inf),
    "model.kernel_size": (1, math.inf),
    "model.whitening_size": (1, math.inf),
    "model.norm_momentum": (0, 1),
    "optim.lr": (ABOVE_0, 1000),
    "optim.momentum": (0, 1),
    "optim.weight_decay": (0, 1000),
    "optim.alpha": (0, 1),
    "optim.linear_lr": (ABOVE_0, 1000),
    "optim.bias_lr": (ABOVE_0, 1000),
    "optim.sgd_momentum": (0, 1),
    "optim.steps": (1, 100),
    "optim.betas": (0, 1),
    "loss.label_smoothing": (0, 1),
    "loss.class_weights": (0, math.inf),
    "scheduler.gamma": (ABOVE_0, math.inf),
    "scheduler.factor": (ABOVE_0, 1),
    "scheduler.patience": (0, math.inf),
    "scheduler.step_size": (1, math.inf),
    "scheduler.warmup": (0, 1),
    "scheduler.div_factor": (1, math.inf),
    "scheduler.final_div_factor": (1, math.inf),
    "scheduler.final_lr": (0, 1000),
    "scheduler.final_ratio": (0, 1),
    "trainer.max_epochs": (-1, math.inf),
    "trainer.max_steps": (-1, math.inf),
    "trainer.num_nodes": (1, math.inf),
    "trainer.gradient_clip_val": (0, math.inf),
    "trainer.accumulate_grad_batches": (1, math.inf),
    "trainer.check_val_every_n_epoch": (1, math.inf),
    "trainer.log_every_n_steps": (1, math.inf),
    "trainer.chunk": (1, math.inf),
    "trainer.timeout_min": (ABOVE_0, math.inf),
    "trainer.limit_train_batches": (ABOVE_0, math.inf),
    "trainer.val_check_interval": (ABOVE_0, math.inf),
    "callbacks.early_stopping.patience": (0, math.inf),
    "callbacks.ema.decay": (0, 1),
}
"""Allowed values of numbers, lists of numbers included; a key that is not there is not checked."""

GROUPS: Mapping[str, str] = {
    **dict.fromkeys(("model", "data", "augment", "optim", "loss", "trainer"), "choose another option of it"),
    "scheduler": "scheduler=constant keeps the learning rate",
    "callbacks": "leave single ones out, as in '~callbacks.early_stopping'",
    "logger": "logger=none logs nothing",
    "paths": "change single ones, as in paths.outputs=DIR",
}
"""What a configuration must hold, and what to do instead of leaving it out."""

CHOICES: Mapping[str, tuple[str, ...]] = {
    "mode": ("max", "min"),
    "monitor": ("val/acc", "val/loss", "train/acc", "train/loss"),
    "model.activation": ("relu", "gelu", "silu", "tanh", "sigmoid", "identity"),
    "augment.crop_mode": ("zeros", "reflect"),
    "augment.flip_mode": ("random", "alternating"),
    "test_views": ("none", "flip", "flip_translate"),
    "scheduler.interval": ("epoch", "step"),
    "scheduler.anneal": ("cos", "linear"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "trainer.precision": (
        *("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true", "transformer-engine"),
        *("32", "16", "64", "bf16"),
    ),
}
"""Allowed words."""


def find_problems(config: DictConfig) -> Iterator[str]:
    """Yield what is wrong with a composed configuration, a line each."""
    yield from (*targets.find_refusals(config), *hydra_guard.find_refusals(config))
    yield from redaction.find_lost(config)
    removed = [group for group in GROUPS if not isinstance(config.get(group), DictConfig)]
    if removed:
        yield from (f"~{group}: a run needs it; {GROUPS[group]}" for group in removed)
        return
    leaves = dict(sorted(_leaves(config)))
    missing = [key for key, raw in leaves.items() if raw == "???"]
    if missing:
        yield from (f"{key}: not given; set {key}=…" for key in missing)
        return
    declared = _declared(config)
    for key in leaves:
        try:
            value = _value(key, leaves, config)
        except OmegaConfBaseException as error:
            yield _reason(key, error)
            continue
        problem = _wrong_type(key, value, declared) or _out_of_range(key, value) or _no_choice(key, value)
        if problem:
            yield problem
    yield from _wrong_fold(config)
    better = "min" if str(config.monitor).endswith("/loss") else "max"
    if config.mode in CHOICES["mode"] and config.mode != better:
        yield f"mode={config.mode}: monitor={config.monitor} is better when {better}imal; set mode={better}"


def _wrong_fold(config: DictConfig) -> Iterator[str]:
    folds, fold = config.data.get("folds"), config.data.get("fold")
    if folds is None:
        if isinstance(fold, int) and fold > 0:
            yield f"data.fold={fold}: has no effect without data.folds; set their number, as in data.folds=5"
    elif type(folds) is not int:
        yield f"data.folds={folds}: {_type_name(folds)}, but a whole number is needed, as in data.folds=5"
    elif isinstance(fold, int) and folds >= 2 and fold >= folds:
        yield f"data.fold={fold}: must be at least 0 and at most {folds - 1}, with data.folds={folds}"


def _leaves(config: DictConfig) -> Iterator[tuple[str, Any]]:
    """Dotted keys of all values but Hydra's own, with what is written there; a list is one value."""
    for name in config:
        node = config._get_node(name)
        if name == "hydra":
            continue
        assert isinstance(node, Node)
        written = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node._value()
        yield from _flat(str(name), written)


def _flat(key: str, written: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(written, dict):
        yield key, written
        return
    for name, child in written.items():
        yield from _flat(f"{key}.{name}", child)


REFERENCE = re.compile(r"\$\{([a-zA-Z_]\w*(?:\.\w+)*)\}")
"""An interpolation that is another key's value and nothing more."""


def _value(key: str, leaves: Mapping[str, Any], config: DictConfig) -> Any:
    """The resolved value of a key. OmegaConf parses each interpolation anew: it is spared simple ones."""
    seen = set()
    while isinstance(raw := leaves[key], str) and (found := REFERENCE.fullmatch(raw)):
        seen.add(key)
        if found[1] not in leaves or found[1] in seen:
            break
        key = found[1]
    if "${" not in str(raw):
        return raw
    value = OmegaConf.select(config, key)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _declared(config: DictConfig) -> Mapping[str, Any]:
    """The values in the YAML files of the chosen options, by dotted key: what type each key has."""
    sources = [source.path for source in config.hydra.runtime.config_sources if source.provider == "main"]
    choices = [
        (str(group), option)
        for group, option in config.hydra.runtime.choices.items()
        if group in config and isinstance(option, str)
    ]
    return _declared_by(tuple(sources), tuple(choices), config.hydra.job.config_name)


@cache  # the jobs of a sweep make the same few choices
def _declared_by(
    sources: tuple[str, ...], choices: tuple[tuple[str, str], ...], config_name: str
) -> Mapping[str, Any]:
    declared = OmegaConf.create()
    for conf in map(Path, sources):
        for group, option in choices:
            declared[group] = _load(conf / group, option)
        declared.merge_with(_load(conf, config_name))
    return dict(_leaves(declared))


def _load(folder: Path, option: str) -> DictConfig:
    """A YAML file on top of those that its defaults list names in the same folder."""
    file = folder / f"{option}.yaml"
    node = OmegaConf.load(file) if file.exists() else OmegaConf.create()
    assert isinstance(node, DictConfig)
    whole = OmegaConf.create()
    for base in node.pop("defaults", []):
        if isinstance(base, str) and base != "_self_":
            whole.merge_with(_load(folder, base))
    whole.merge_with(node)
    return whole


def _wrong_type(key: str, value: Any, declared: Mapping[str, Any]) -> str:
    default = declared.get(key)
    if default is None and value is not None:
        default = INSTEAD_OF_NULL.get(key)
    if default is None or (isinstance(default, str) and ("${" in default or default == "???")):
        return ""
    if value is None:
        return _null_not_allowed(key, default)
    expected = _type_name(default)
    if isinstance(default, list) and isinstance(value, list) and len(default):
        strangers = [entry for entry in value if not _fits(_type_name(default[0]), entry)]
        if strangers:
            wanted = f"{_type_name(default[0])} is needed, as in {key}={_shown(default)}"
            return f"{key}={value}: {strangers[0]} is {_type_name(strangers[0])}, but {wanted}"
    if key in FREE_TYPES or _fits(expected, value):
        return ""
    return f"{key}={value}: {_type_name(value)}, but {expected} is needed, as in {key}={_shown(default)}"


INSTEAD_OF_NULL: Mapping[str, Any] = {
    "trainer.chunk": 16,
    "trainer.gradient_clip_val": 1.0,
    "data.num_workers": 4,
}
"""What a value may be where the default is null."""

FREE_TYPES = frozenset(
    {
        *("trainer.devices", "trainer.precision", "trainer.strategy", "trainer.overfit_batches"),
        *("trainer.limit_train_batches", "trainer.limit_val_batches", "trainer.limit_test_batches"),
        *("name", "trainer.deterministic", "data.val_size", "data.test_size"),
    }
)
"""Keys whose values may have several types."""


def _fits(expected: str, value: Any) -> bool:
    """Whether a value is of the type called `expected`; a whole number is a number too."""
    found = _type_name(value)
    return found == expected or (expected, found) == ("a number", "a whole number")


def _null_not_allowed(key: str, default: Any) -> str:
    if key == "trainer.max_epochs":
        return "trainer.max_epochs=null: write -1 for no limit"
    if key in FREE_TYPES:
        return ""
    return f"{key}=null: {_type_name(default)} is needed, as in {key}={_shown(default)}"


def _type_name(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        return "a whole number"
    if isinstance(value, float):
        return "a number"
    if isinstance(value, list):
        return "a list"
    return "a group of keys" if isinstance(value, dict | DictConfig) else "a word"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).replace(" ", "") if isinstance(value, list) else str(value)


def _out_of_range(key: str, value: Any) -> str:
    if key not in RANGES:
        return ""
    lowest, highest = RANGES[key]
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        if not lowest <= number <= highest:
            above = "above 0" if lowest == ABOVE_0 else f"at least {lowest}"
            below = "" if math.isinf(highest) else f" and at most {highest}"
            return f"{key}={value}: must be {above}{below}"
    if key == "trainer.max_epochs" and value == 0:
        return "trainer.max_epochs=0: nothing to train; choose at least 1, or -1 for no limit"
    return ""


def _no_choice(key: str, value: Any) -> str:
    if key not in CHOICES or str(value) in CHOICES[key]:
        return ""
    return f"{key}={value}: {did_you_mean(str(value), CHOICES[key])}"


def _reason(key: str, error: Exception) -> str:
    message = one_line(error)
    _, found, reason = message.partition(f"{InputError.__name__} raised while resolving interpolation: ")
    return reason if found else f"{key}: {message}"
