"""Allowed values of keys that no constructor of ours takes: those of a run, and of libraries' classes.

Everything else is declared where it is taken, in the annotations of constructors (see `runtime.bounds`).
"""

import ast
from collections.abc import Mapping
from functools import cache
from typing import Any

from project.config.source_index import Signature, signature_of
from project.runtime.bounds import Spec, parse

AT_LEAST_1 = "Annotated[int, Range(1)]"
FRACTION = "Annotated[float, Range(0, 1)]"
POSITIVE = "Annotated[float, Range(above=0)]"
NOT_NEGATIVE = "Annotated[float, Range(0)]"
NO_LIMIT = f"Literal[-1] | {AT_LEAST_1}"
BATCHES = "Annotated[float, Range(0, 1)] | Annotated[int, Range(0)]"
SOME_BATCHES = f"Annotated[float, Range(above=0, high=1)] | {AT_LEAST_1}"

RUN: Mapping[str, str] = {
    "seed": "Annotated[int, Range(0, 2**32 - 1)]",
    "monitor": "str",
    "mode": "Literal['max', 'min']",
    "tune": "Literal['lr', 'batch_size'] | None",
    "tta": "Literal['none', 'flip', 'flip_translate']",
    "optim.layerwise_lr_decay": "Annotated[float, Range(above=0, high=1)]",
    "optim.weight_decay_norm_bias": "bool",
    "seeds": AT_LEAST_1,
    "folds": "Annotated[int, Range(2)] | None",
    "paths.image_cache": "str | None",
}
"""Keys at the top of a run's configuration."""

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
"""Arguments of libraries' classes, by the beginning of their full names."""


@cache
def _parsed(text: str) -> Spec:
    return parse(ast.parse(text, mode="eval").body, lambda _: None)


def spec_of(key: str, leaves: Mapping[str, Any]) -> Spec:
    """Return the values that a key may have, as far as they are declared.

    Args:
        key: dotted.
        leaves: all values as they are written, by dotted key.
    """
    if key in RUN:
        return _parsed(RUN[key])
    place, name, *inner = place_of(key, leaves)
    spec = _spec_of_argument(leaves.get(f"{place}._target_"), name)
    for _ in inner:
        spec = next((kind.entries for kind in spec if kind.name == "dict"), ())
    return spec


def takes_keys(key: str, leaves: Mapping[str, Any]) -> bool:
    """Return whether the argument that a key belongs to may be a group of keys; as `spec_of`."""
    place, name, *_ = place_of(key, leaves)
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


def place_of(key: str, leaves: Mapping[str, Any]) -> list[str]:
    """Split a key into the key of the object that it belongs to, the argument, and keys within that."""
    parts = key.split(".")
    for count in range(len(parts) - 1, 0, -1):
        if f"{'.'.join(parts[:count])}._target_" in leaves:
            return [".".join(parts[:count]), *parts[count:]]
    return [parts[0], *parts[1:], *[""] * (len(parts) == 1)]
