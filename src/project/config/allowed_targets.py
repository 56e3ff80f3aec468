"""Allow-list of the classes and functions that a configuration may name as `_target_`.

A configuration may come from someone else, and Hydra calls any object that a `_target_` names. Without this
list, `torch.load` could unpickle a file, and `os.system` could run a command. Each group accepts only classes
and functions that are defined in its packages of `ALLOWED`. Names that a module merely imports, such as
`torch.nn.modules.module.torch.load`, are refused. Definitions are read from source files without importing
them, and confirmed on the objects themselves right before instantiation.

Only code can extend the list: no key, flag or environment variable does. `project.modules`,
`project.datamodules`, `project.callbacks` and `project.loggers` are included. A module of another package
lists its own classes and functions:

    CONFIG_TARGETS = ("MyNet", "my_schedule")

or its package is added to `ALLOWED`.
"""

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from project.config.source_index import MARK, find_origin, marked_names, public_names
from project.errors import InputError
from project.runtime.atomic_files import refuse_url
from project.runtime.text import nearest_names
from project.runtime.yaml_files import raw_child

ALLOWED: Mapping[str, tuple[str, ...]] = {
    "task": ("project.modules", "torch.nn", "torch.optim", "torchvision.models", "torchmetrics"),
    "model": ("project.modules", "torch.nn", "torchvision.models"),
    "data": ("project.datamodules", "torchvision.transforms"),
    "augment": ("project.datamodules", "torchvision.transforms"),
    "optim": ("project.modules", "torch.optim"),
    "scheduler": ("project.modules", "torch.optim"),
    "loss": ("project.modules", "torch.nn"),
    "trainer": (
        *("project.training", "lightning.pytorch.trainer", "lightning.pytorch.strategies"),
        *("lightning.pytorch.plugins", "lightning.pytorch.profilers", "lightning.fabric.plugins"),
    ),
    "callbacks": ("project.callbacks", "lightning.pytorch.callbacks", "torchmetrics"),
    "logger": ("project.loggers", "lightning.pytorch.loggers"),
}
"""Allowed packages by group. Other groups are not instantiated."""

WITH_FUNCTIONS = ("project.modules", "torchvision.models")
"""Packages whose functions are allowed too; other packages allow only classes."""

NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")
"""Dotted name without private parts."""

REFERENCE = re.compile(r"\$\{([a-zA-Z_]\w*(?:\.\w+)*)\}")
"""Interpolation of one key and nothing else."""

FILES = ("ckpt_path", "resume", "model.weights")
"""Keys whose values are files to load."""


class Target(NamedTuple):
    """`_target_` in a configuration.

    Args:
        key: dotted key of the `_target_`.
        name: value of the `_target_`.
    """

    key: str
    name: Any


def find_refusals(config: DictConfig) -> Iterator[str]:
    """Yield a line for each `_target_` of a composed configuration that is not allowed.

    Values that cannot be resolved yet are checked later, by `confirm`.
    """
    for group in map(str, config):
        if group in ALLOWED:
            yield from refusals(plain_values(config, group), group)
        elif group != "hydra":  # not instantiated, so that references need no look
            yield from refusals(_written(config, group), group)
    for key in FILES:
        if line := refuse_url(key, plain_values(config, key)):
            yield line


def refusals(plain: Any, group: str) -> Iterator[str]:
    """Yield a line for each refused value of a group, given its resolved values."""
    for found in find(plain, group):
        if line := refusal(found, group):
            yield line
    if group in ALLOWED:
        for key, text in _strings(plain, group):
            if "${" in text:  # Hydra would resolve the value again, after all checks
                yield f"{key}={text}: contains an escaped ${{…}}; remove the backslash"


def plain_values(config: DictConfig, key: str) -> Any:
    """Return the resolved values of a key and below; None for values that cannot be resolved yet."""
    return _resolve(config, key, _written(config, key))


def _written(config: DictConfig, key: str) -> Any:
    """Return the values of a key and below before interpolation; None if the key does not exist."""
    node: Any = config
    for part in key.split("."):
        node = raw_child(node, part) if isinstance(node, DictConfig) else None
    return OmegaConf.to_container(node) if OmegaConf.is_config(node) else node


def _resolve(config: DictConfig, key: str, raw: Any) -> Any:
    """Resolve interpolations one by one, which is faster: most values contain none."""
    if isinstance(raw, dict):
        return {name: _resolve(config, f"{key}.{name}", child) for name, child in raw.items()}
    if isinstance(raw, list):
        return [_resolve(config, f"{key}[{place}]", child) for place, child in enumerate(raw)]
    if not (isinstance(raw, str) and "${" in raw):
        return raw
    if (found := REFERENCE.fullmatch(raw)) and isinstance(
        known := _written(config, found[1]), bool | int | float
    ):
        return known
    try:
        resolved = OmegaConf.select(config, key)
        return OmegaConf.to_container(resolved, resolve=True) if OmegaConf.is_config(resolved) else resolved
    except (OmegaConfBaseException, ValueError):
        return None


def find(plain: Any, key: str) -> Iterator[Target]:
    """Yield each `_target_` in plain values."""
    if isinstance(plain, Mapping):
        for name, child in plain.items():
            if name == "_target_":
                yield Target(f"{key}._target_", child)
            yield from find(child, f"{key}.{name}")
    elif isinstance(plain, list | tuple):
        for place, child in enumerate(plain):
            yield from find(child, f"{key}[{place}]")


def refusal(target: Target, group: str) -> str:
    """Return the error line for a target in a group; empty if the target is allowed."""
    key, name = target
    packages = ALLOWED.get(group, ())
    if not packages:
        return f"{key}={name}: {group} is not instantiated; move it to one of {', '.join(ALLOWED)}"
    if isinstance(name, str) and NAME.fullmatch(name):
        module, _, attribute = name.rpartition(".")
        if attribute in marked_names(module):
            origin = find_origin(module, attribute)
            if origin is not None and origin.module == module:
                return ""
        if any(_within(module, package) or _within(package, module) for package in packages):
            origin = find_origin(module, attribute)
            if origin is not None and any(_allows(package, *origin) for package in packages):
                return ""
            if origin is None and (near := _nearest(module, attribute, packages)):
                return f"{key}={name}: {module} does not define that name; did you mean {near}?"
    return (
        f"{key}={name}: not allowed; {group} may name classes defined in {', '.join(packages)}, or objects "
        f"that your own module lists in {MARK} (see project/config/allowed_targets.py)"
    )


def confirm(plain: Any, group: str) -> None:
    """Check the targets of a group on the imported objects, right before instantiation.

    Args:
        plain: resolved values of the group.
        group: name of the group.

    Raises:
        InputError: a target is not allowed, or is not the object that its source defines.
    """
    for line in refusals(plain, group):
        raise InputError(line)
    for key, name in find(plain, group):
        module, _, attribute = name.rpartition(".")
        origin = find_origin(module, attribute)
        assert origin is not None
        try:
            named = getattr(importlib.import_module(module), attribute)
            defined = getattr(importlib.import_module(origin.module), origin.name)
        except (ImportError, AttributeError) as error:
            raise InputError(f"{key}={name}: cannot be imported ({error})") from error
        if named is not defined or not (inspect.isclass(named) or inspect.isfunction(named)):
            raise InputError(f"{key}={name}: is not the {origin.kind} defined in its source; name another")


def _allows(package: str, module: str, name: str, kind: str) -> bool:
    return _within(module, package) and (kind == "class" or package in WITH_FUNCTIONS)


def _nearest(module: str, name: str, packages: tuple[str, ...]) -> str:
    near = nearest_names(name, [known for known in public_names(module) if known != name])
    origins = {found: find_origin(module, found) for found in near}
    return " or ".join(
        f"{module}.{found}"
        for found, origin in origins.items()
        if origin is not None and any(_allows(package, *origin) for package in packages)
    )


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _strings(plain: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(plain, Mapping):
        for name, child in plain.items():
            yield from _strings(child, f"{key}.{name}")
            if isinstance(name, str) and "${" in name:
                yield key, name
    elif isinstance(plain, list | tuple):
        for place, child in enumerate(plain):
            yield from _strings(child, f"{key}[{place}]")
    elif isinstance(plain, str):
        yield key, plain
