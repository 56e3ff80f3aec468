"""Check single values: type, range and choices.

The annotations of constructors declare most allowed values (see `runtime.bounds`). The tables of this module
declare the values of top-level keys and of libraries' classes.
"""

import ast
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import PurePath
from typing import Any

from project.config.signatures import Signature, signature_of
from project.runtime import bounds
from project.runtime.bounds import KIND_NAMES, Kind, Spec, format_value, kind_of, parse
from project.runtime.text import MAX_NAME_BYTES, did_you_mean, name_length, nearest_names

DURATION = re.compile(r"\d+:\d\d:\d\d:\d\d")


AT_LEAST_1 = "Annotated[int, Range(1)]"
FRACTION = "Annotated[float, Range(0, 1)]"
NOT_NEGATIVE = "Annotated[float, Range(0)]"
NO_LIMIT = f"Literal[-1] | {AT_LEAST_1}"
BATCHES = "Annotated[float, Range(0, 1)] | Annotated[int, Range(0)]"
SOME_BATCHES = f"Annotated[float, Range(above=0, high=1)] | {AT_LEAST_1}"

RUN: Mapping[str, str] = {
    "seed": "Annotated[int, Range(0, 2**32 - 1)]",
    "monitor": "str",
    "mode": "Literal['max', 'min']",
    "tune": "Literal['lr', 'batch_size'] | None",
    "tta": "Literal['none', 'flip', 'flip_translate', 'selective']",
    "optim.layerwise_lr_decay": "Annotated[float, Range(above=0, high=1)]",
    "optim.weight_decay_norm_bias": "bool",
    "seeds": AT_LEAST_1,
    "folds": "Annotated[int, Range(2)] | None",
    "paths.image_cache": "str | None",
}
"""Top-level keys of a run, and keys of `optim` that are not arguments of the optimizer."""

OPTIMIZER: Mapping[str, str] = {
    "lr": "Annotated[float, Range(above=0, high=1000)]",
    "momentum": FRACTION,
    "weight_decay": "Annotated[float, Range(0, 1000)]",
    "alpha": FRACTION,
    "betas": "Annotated[tuple[float, float], Range(0, below=1)]",
}
STRATEGIES = (
    *("auto", "single_device", "single_xla", "fsdp", "fsdp_cpu_offload", "model_parallel"),
    *("xla", "xla_debug", "xla_fsdp", "deepspeed", "deepspeed_stage_1", "deepspeed_stage_2"),
    *("deepspeed_stage_3", "deepspeed_stage_1_offload", "deepspeed_stage_2_offload"),
    *("deepspeed_stage_3_offload", "deepspeed_stage_3_offload_nvme"),
    *(
        f"{start}{unused}"
        for start in ("ddp", "ddp_spawn", "ddp_fork", "ddp_notebook")
        for unused in ("", "_find_unused_parameters_true", "_find_unused_parameters_false")
    ),
)
PRECISIONS = (
    *("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true", "transformer-engine"),
    *("transformer-engine-float16", "32", "16", "64", "bf16"),
)
TRAINER: Mapping[str, str] = {
    "accelerator": "Literal['auto', 'cpu', 'gpu', 'cuda', 'mps', 'tpu']",
    "strategy": f"Literal[{STRATEGIES}] | dict",
    "precision": f"Literal[{PRECISIONS}] | int | None",
    "max_epochs": NO_LIMIT,
    "max_steps": NO_LIMIT,
    "num_nodes": AT_LEAST_1,
    "gradient_clip_val": f"{NOT_NEGATIVE} | None",
    "accumulate_grad_batches": AT_LEAST_1,
    "check_val_every_n_epoch": f"{AT_LEAST_1} | None",
    "log_every_n_steps": AT_LEAST_1,
    "num_sanity_val_steps": "Annotated[int, Range(-1)]",
    "limit_train_batches": SOME_BATCHES,
    "limit_val_batches": BATCHES,
    "limit_test_batches": BATCHES,
    "overfit_batches": BATCHES,
    "val_check_interval": f"{SOME_BATCHES} | str | None",
}
EARLY_STOPPING: Mapping[str, str] = {
    "patience": "Annotated[int, Range(0)]",
    "min_delta": NOT_NEGATIVE,
    "mode": "Literal['max', 'min']",
}
LIBRARIES: Mapping[str, Mapping[str, str]] = {
    "torch.optim.": OPTIMIZER,
    "lightning.pytorch.trainer.trainer.Trainer": TRAINER,
    "lightning.pytorch.callbacks.early_stopping.EarlyStopping": EARLY_STOPPING,
}
"""Arguments of libraries' classes, by prefix of the dotted class name."""


@cache
def _parsed(text: str) -> Spec:
    return parse(ast.parse(text, mode="eval").body, lambda _: None)


def spec_of(key: str, leaves: Mapping[str, Any]) -> Spec:
    """Return the allowed values of a key; empty if they are not declared.

    Args:
        key: dotted key.
        leaves: all values before interpolation, by dotted key.
    """
    if key in RUN:
        return _parsed(RUN[key])
    place, name, *inner = split_key(key, leaves)
    spec = _spec_of_argument(leaves.get(f"{place}._target_"), name)
    for _ in inner:
        spec = next((kind.entries for kind in spec if kind.name == "dict"), ())
    return spec


def takes_keys(key: str, leaves: Mapping[str, Any]) -> bool:
    """Return True if the argument that contains a key may be a group of keys; arguments as for `spec_of`."""
    place, name, *_ = split_key(key, leaves)
    spec = _spec_of_argument(leaves.get(f"{place}._target_"), name)
    return not spec or any(kind.name == "dict" for kind in spec)


def _spec_of_argument(target: Any, name: str) -> Spec:
    found = signature_of(target) if isinstance(target, str) else None
    argument = found.arguments.get(name) if isinstance(found, Signature) else None
    if argument is None:
        return ()
    tables = (table for start, table in LIBRARIES.items() if argument.owner.startswith(start))
    declared = next((table[name] for table in tables if name in table), None)
    return argument.spec if declared is None else _parsed(declared)


def split_key(key: str, leaves: Mapping[str, Any]) -> list[str]:
    """Split a dotted key into the key of its object, the argument, and the keys within the argument."""
    parts = key.split(".")
    for count in range(len(parts) - 1, 0, -1):
        if f"{'.'.join(parts[:count])}._target_" in leaves:
            return [".".join(parts[:count]), *parts[count:]]
    return [parts[0], *parts[1:], *[""] * (len(parts) == 1)]


def find_problem(
    key: str, value: Any, declared: Mapping[str, Any], leaves: Mapping[str, Any] | None = None
) -> str:
    """Return a line about a value that is invalid by itself; empty if it is valid.

    Args:
        key: dotted key.
        value: resolved value.
        declared: values in the YAML files of the chosen options, by dotted key.
        leaves: all values before interpolation, by dotted key [`declared`].
    """
    leaves = declared if leaves is None else leaves
    if key in PATTERNS:
        return PATTERNS[key](key, value)
    if value is None and "${" in str(leaves.get(key)):  # an interpolation that cannot be resolved
        return ""
    if line := _value_for_group(key, value, declared):
        return line
    place, name, *inner = split_key(key, leaves)
    target = f"{place}._target_"
    is_of_file = key == target or leaves.get(target) == declared.get(target)
    if not is_of_file and key in declared and leaves.get(key) == declared[key]:
        return ""  # the file belongs to another class: unknown keys are reported first
    default = declared.get(key) if is_of_file else None
    if inner and not takes_keys(key, leaves):
        spec = spec_of(f"{place}.{name}", leaves)
        return f"{place}.{name}: {bounds.find_problem(spec, {})}{_example(f'{place}.{name}', declared)}"
    spec = spec_of(key, leaves)
    problem = bounds.find_problem(spec or _spec_like(default), value)
    words = [str(choice) for kind in spec for choice in kind.choices if isinstance(choice, str)]
    are_words = all(kind.name in ("str", "None") for kind in spec) or nearest_names(str(value), words)
    if problem and words and are_words and isinstance(value, str | int) and not isinstance(value, bool):
        return f"{key}={value}: {did_you_mean(str(value), words)}"
    if not problem or problem.startswith("must"):
        return problem and f"{key}={value}: {problem}"
    given = value if isinstance(value, str) else format_value(value)
    example = _example(key, declared) if bounds.find_problem(spec, default) == "" else ""
    return f"{key}={given}: {problem}{example}"


def _spec_like(default: Any) -> Spec:
    """Return the spec of the type of a default; empty (any value) for null and interpolations."""
    if default is None or (isinstance(default, str) and ("${" in default or default == "???")):
        return ()
    entries = _spec_like(default[0]) if isinstance(default, list) and default else ()
    return (Kind(kind_of(default), entries=entries),)


def _example(key: str, declared: Mapping[str, Any]) -> str:
    default = declared.get(key)
    if default is None or isinstance(default, dict) or "${" in str(default) or default == "???":
        return ""
    written = default if isinstance(default, str) else format_value(default)
    return f"; for example {key}={written}"


def _value_for_group(key: str, value: Any, declared: Mapping[str, Any]) -> str:
    """Return a line for a value in place of a group of keys, or keys below a value; otherwise empty."""
    if "." in key and value != {} and any(other.startswith(f"{key}.") for other in declared):
        without = f"; leave it out with '~{key}'" if key.startswith(("callbacks.", "logger.")) else ""
        return f"{key}={format_value(value)}: expected a group of keys, got {_got(value)}{without}"
    parent = key.rpartition(".")[0]
    while parent:
        default = declared.get(parent)
        is_free = isinstance(default, dict | None) or parent == "trainer.strategy"
        if not is_free and "${" not in str(default):
            wanted = KIND_NAMES[kind_of(default)]
            return f"{parent}: expected {wanted}, got a group of keys{_example(parent, declared)}"
        parent = parent.rpartition(".")[0]
    return ""


def _got(value: Any) -> str:
    return "null" if value is None else KIND_NAMES[kind_of(value)]


def _devices(key: str, value: Any) -> str:
    """Return a line for an invalid `trainer.devices`, such as `0`, `[]` and `[0,0]`."""
    wanted = "expected a number from 1, a list such as [0,1], or auto for all"
    listed = isinstance(value, str) and re.fullmatch(r"\d+(,\d+)*,?", value) and value.rstrip(",") != "0"
    if listed or value in ("auto", "-1") or (type(value) is int and (value >= 1 or value == -1)):
        return ""
    if isinstance(value, list) and value and all(type(one) is int and one >= 0 for one in value):
        return f"{key}={value}: lists a device twice; {wanted}" if len(set(value)) < len(value) else ""
    return f"{key}={format_value(value) if value is None else value}: {wanted}"


def _duration(key: str, value: Any) -> str:
    if value in (None, {}) or (isinstance(value, str) and DURATION.fullmatch(value)):
        return ""
    return f"{key}={value}: expected days:hours:minutes:seconds, as in {key}=00:01:30:00"


def _amount(key: str, value: Any) -> str:
    problem = bounds.find_problem((Kind("float", bounds.Range(0)),), value)
    return f"{key}={value}: {problem}" if problem else ""


def _interval(key: str, value: Any) -> str:
    """Return a line unless the value is a number of batches, a fraction of an epoch or a duration."""
    if value is None or (isinstance(value, str) and DURATION.fullmatch(value)):
        return ""
    kinds = (Kind("float", bounds.Range(above=0, high=1)), Kind("int", bounds.Range(1)))
    problem = bounds.find_problem(kinds, value)
    return f"{key}={value}: {problem}" if problem else ""


def _name(key: str, value: Any) -> str:
    """Return a line for a name that cannot be a folder below `paths.outputs`."""
    text = str(value)
    parts = PurePath(text).parts
    if isinstance(value, list | dict | bool) or value is None:
        return f"{key}={format_value(value)}: expected a folder name, got {_got(value)}"
    outside = PurePath(text).is_absolute() or ".." in parts or not parts
    if outside or not text.strip() or not text.isprintable():
        return (
            f"{key}={text!r}: not a folder name below paths.outputs; give a plain name, and set the "
            "parent folder by paths.outputs"
        )
    if (length := name_length(text)) > MAX_NAME_BYTES:
        return (
            f"{key}={text}: too long for a folder (at most {MAX_NAME_BYTES} bytes, got {length}); shorten it"
        )
    return ""


PATTERNS: Mapping[str, Callable[[str, Any], str]] = {
    "trainer.devices": _devices,
    "trainer.val_check_interval": _interval,
    "trainer.max_time": _duration,
    **{f"trainer.max_time.{unit}": _amount for unit in ("weeks", "days", "hours", "minutes", "seconds")},
    "name": _name,
}
"""Keys with special formats, and their checks."""
