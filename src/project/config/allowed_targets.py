"""Allow-list of the classes and functions that a configuration may name as `_target_`.

A configuration may come from someone else, and Hydra calls any object that a `_target_` names. Without this
list, `torch.load` could unpickle a file, and `os.system` could run a command. Each group accepts only classes
and functions that are defined in its packages of `ALLOWED`. Names that a module merely imports, such as
`torch.nn.modules.module.torch.load`, are refused. Definitions are read from source files without importing
them, and confirmed on the objects themselves right before instantiation.

Only installed code extends the list: no key, flag or environment variable does, and no file next to a
configuration, since whoever sends a configuration would send that file too. There are three ways:

- A module lists its own classes and functions: `CONFIG_TARGETS = ("MyNet", "my_schedule")`.
- A package allows all that it defines, in every group, by an entry point in its `pyproject.toml`:

      [project.entry-points."project.config_targets"]
      mine = "mine"

- The module of that entry point allows packages, modules or single names of others, by group:
  `CONFIG_PACKAGES = {"model": ("monai.networks",)}`.
"""

import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from project.config.parts import parts_of
from project.config.source_index import (
    MARK,
    UNKNOWN,
    Origin,
    find_missing,
    find_origin,
    imported_from,
    marked_names,
    module_constant,
    public_names,
    text_of,
)
from project.errors import InputError
from project.runtime import lazy_imports
from project.runtime.atomic_files import refuse_url
from project.runtime.text import did_you_mean, nearest_names
from project.runtime.yaml_files import raw_child

ALLOWED: Mapping[str, tuple[str, ...]] = {
    "task": (
        *("project.modules", "torch.nn", "torch.optim", "torchvision.models", "timm.models", "torchmetrics"),
    ),
    "model": ("project.modules", "torch.nn", "torchvision.models", "timm.models"),
    "data": ("project.datamodules", "torchvision.transforms"),
    "augment": ("project.datamodules", "torchvision.transforms"),
    "optim": ("project.modules", "torch.optim"),
    "scheduler": ("project.modules", "torch.optim"),
    "loss": ("project.modules", "torch.nn"),
    "metrics": ("project.modules", "torchmetrics"),
    "trainer": (
        *("project.training", "lightning.pytorch.trainer", "lightning.pytorch.strategies"),
        *("lightning.pytorch.plugins", "lightning.pytorch.profilers", "lightning.fabric.plugins"),
    ),
    "callbacks": ("project.callbacks", "lightning.pytorch.callbacks", "torchmetrics"),
    "logger": ("project.loggers", "lightning.pytorch.loggers"),
}
"""Allowed packages by group. Other groups are not instantiated."""

WITH_FUNCTIONS = ("project.modules", "torchvision.models", "timm.models")
"""Packages whose functions are allowed too; other packages allow only classes."""

ENTRY_POINTS = "project.config_targets"
"""Entry points of packages whose classes and functions configurations may name."""
GRANTS = "CONFIG_PACKAGES"
"""Name of the table, in the module of such an entry point, that allows packages of others."""

FOREIGN_MARK = "HYDRA_TARGETS"
"""Name that modules may use in place of `CONFIG_TARGETS` by mistake."""
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
            plain = plain_values(config, group)
            if group == "task" and isinstance(plain, dict):  # its parts are checked as their own groups
                parts = parts_of(_written(config, group))
                plain = {name: value for name, value in plain.items() if name not in parts}
            yield from refusals(plain, group)
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
    """Return a line that refuses a target for a group; empty if it is allowed."""
    key, name = target
    packages = ALLOWED.get(group, ())
    if not packages:
        return f"{key}={name}: {group} is not instantiated; move it to one of {', '.join(ALLOWED)}"
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return f"{key}={name}: not allowed (expected a public dotted name); write package.module.Class"
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
            return f"{key}={name}: no {attribute} in {module}; did you mean {near}?"
    if _is_granted(name, group):
        return ""
    return f"{key}={name}: {_explain(name, group)}"


def _is_granted(name: str, group: str) -> bool:
    """Return True if an installed package allows a name that is not on the project's own list."""
    module, _, attribute = name.rpartition(".")
    for package in granted(group):
        if _within(name, package) or _within(package, module):
            origin = find_origin(module, attribute)
            if origin is not None and (name == package or _within(f"{origin.module}.{origin.name}", package)):
                return True
    return False


def granted(group: str) -> tuple[str, ...]:
    """Return the packages, modules and names that installed packages allow for a group.

    Raises:
        InputError: a table `CONFIG_PACKAGES` is not a plain dict of tuples, or names no group.
    """
    found: list[str] = []
    for module in registered_modules():
        table = module_constant(module, GRANTS)
        found.append(module)
        if table is UNKNOWN:
            if re.search(rf"^{GRANTS}\b", text_of(module) or "", re.MULTILINE):
                raise InputError(f"{module}.{GRANTS}: not readable without running it; write a plain dict")
            continue
        if not isinstance(table, dict) or not all(isinstance(one, tuple | list) for one in table.values()):
            raise InputError(
                f'{module}.{GRANTS}: not a dict of tuples; write {{"model": ("monai.networks",)}}'
            )
        if unknown := [one for one in table if one not in ALLOWED]:
            raise InputError(f"{module}.{GRANTS}: no group {unknown[0]}; {did_you_mean(unknown[0], ALLOWED)}")
        found += map(str, table.get(group, ()))
    return tuple(found)


@cache
def registered_modules() -> tuple[str, ...]:
    """Return the modules of the entry points `project.config_targets` of all installed packages."""
    from importlib.metadata import entry_points  # slow import, and only packages of others need it

    return tuple(dict.fromkeys(entry.module for entry in entry_points(group=ENTRY_POINTS)))


def own_packages(targets: Iterable[str]) -> list[str]:
    """Return the top-level packages of the user whose classes are among targets.

    These are packages of entry points, and those of modules that list their classes in `CONFIG_TARGETS`.
    """
    registered = {module.partition(".")[0] for module in registered_modules()}
    modules = {target.rpartition(".")[0] for target in targets}
    tops = {(module.partition(".")[0], module) for module in modules}
    return sorted({top for top, module in tops if top in registered or marked_names(module)} - {"project"})


def _explain(name: str, group: str) -> str:
    """Return why a name is refused: not installed, no such name, or not allowed, and how to allow it."""
    module, _, attribute = name.rpartition(".")
    if (missing := find_missing(name)) is not None and not missing.where:
        tops = [package.partition(".")[0] for package in (*ALLOWED[group], *registered_modules())]
        near = nearest_names(missing.name, dict.fromkeys(tops))
        hint = f"did you mean {near[0]}?" if near else "install it, your own with: pip install -e FOLDER"
        return f"no package {missing.name} is installed here; {hint}"
    if missing is not None:
        return f"no {missing.name} in {missing.where}; {did_you_mean(missing.name, missing.known)}"
    elsewhere = imported_from(module, attribute)
    if attribute in marked_names(module) and elsewhere:
        return f"not allowed; {module} only imports it: name {elsewhere} and list it in its own module"
    listed = re.search(rf"^{MARK}\b", text_of(module) or "", re.MULTILINE)
    if listed and module_constant(module, MARK) is UNKNOWN:
        return f"not allowed; {module}.{MARK} is not readable without running it; write a plain tuple"
    if re.search(rf"^{FOREIGN_MARK}\b", text_of(module) or "", re.MULTILINE):
        return f"not allowed; {module}.{FOREIGN_MARK} is not read; rename it to {MARK}"
    return f"not allowed; {_remedy(name, find_origin(module, attribute), group)}"


def _remedy(name: str, origin: Origin | None, group: str) -> str:
    module, _, attribute = name.rpartition(".")
    known = f"{group} may name what is defined in {', '.join(ALLOWED[group])}"
    if origin is None:
        return f"{known}, and {module} defines no class or function {attribute}"
    return (
        f"{known}; to allow it, list it in {MARK} of your own module, or, for a package of others, write "
        f'{GRANTS} = {{"{group}": ("{origin.module}.{origin.name}",)}} in the module that your package '
        f"registers as entry point {ENTRY_POINTS} (see project/config/allowed_targets.py)"
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
            definition = importlib.import_module(origin.module)
            lazy_imports.load(definition)  # before `named` is read, which may be a placeholder
            defined = getattr(definition, origin.name)
            named = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise InputError(f"{key}={name}: cannot be imported ({error})") from error
        if named is not defined or not (inspect.isclass(named) or inspect.isfunction(named)):
            raise InputError(
                f"{key}={name}: is not the {origin.kind} that its source defines, because an import replaced "
                "it; choose another"
            )


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
