"""Absolute paths and constructors' defaults for a composed configuration. Needs no torch.

- Relative paths mean the folder in which the command was given, whatever `hydra.job.chdir` says.
- A YAML file may leave out keys that others read, if the constructor has defaults for them.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, Node, open_dict

from project.config import allowed_targets
from project.config.validation.signatures import Signature, signature_of
from project.errors import InputError

PLACE = re.compile(
    r"paths\.(?!run$)\w+|ckpt_path|(data|model)\.(\w+_)?(path|root|dir|folder|file|weights|image_cache)"
)
"""Keys whose values are paths, if there are files or folders of these names."""
READ: Mapping[str, tuple[str, ...]] = {
    "data": ("input_shape", "num_classes", "batch_size", "val_size"),
    "trainer": (
        *("accelerator", "devices", "num_nodes", "precision", "max_epochs", "max_steps", "max_time"),
        *("limit_val_batches", "accumulate_grad_batches", "gradient_clip_val"),
    ),
}
"""Keys of objects that are read elsewhere too."""
IMAGE_DATA = "project.datamodules.base.ImageDataModule"


def complete(config: DictConfig) -> None:
    """Fill in what a configuration leaves open; what was filled in stays.

    Args:
        config: composed, changed in place.

    Raises:
        InputError: the images' class is none that a run can train on.
    """
    hydra = config.get("hydra") or (HydraConfig.get() if HydraConfig.initialized() else None)
    if hydra is not None and hydra.job.chdir:
        _anchor(config, Path(hydra.runtime.cwd))
    for group, keys in READ.items():
        node = _written(config, group)
        if not isinstance(node, DictConfig):
            continue
        there = set(node)  # `in` denies a value of ???
        missing = [key for key in keys if key not in there]
        if missing and isinstance(target := _written(node, "_target_"), str) and "${" not in target:
            defaults = _defaults(target, group, missing)
            with open_dict(node):
                node.update({key: defaults[key] for key in missing if key in defaults})


def _written(node: DictConfig, name: str) -> Any:
    """A group, or a value as it is written: other checks tell of one that cannot be resolved."""
    found = node._get_node(name)
    return found._value() if isinstance(found, Node) and not isinstance(found, DictConfig) else found


def _anchor(config: DictConfig, start: Path) -> None:
    for group in ("", "paths", "data", "model"):
        node = _written(config, group) if group else config
        for name in map(str, node) if isinstance(node, DictConfig) else ():
            value = _written(node, name)
            if not PLACE.fullmatch(f"{group}.{name}".lstrip(".")) or not isinstance(value, str) or not value:
                continue
            is_name = name.endswith("weights") and not (start / value).exists()  # one that torchvision knows
            if "${" not in value and "://" not in value and value != "???" and not is_name:
                node[name] = str(start / value)


def _defaults(target: str, group: str, missing: Sequence[str]) -> Mapping[str, Any]:
    """Defaults of a constructor, inherited ones included: read from its source, or off the class."""
    found = signature_of(target)
    known = found.defaults if isinstance(found, Signature) else {}
    plain = {"_target_": target}
    if (
        group != "data"
        or all(key in known for key in missing)
        or next(allowed_targets.refusals(plain, group), None)
    ):
        return known  # what is refused is told by another check
    allowed_targets.confirm(plain, group)
    module, _, name = target.rpartition(".")
    made = getattr(import_module(module), name)
    require_image_data(made, target)
    return _of_class(made)


def _of_class(made: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in made.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
        found = {each.name: each.default for each in parameters if each.default is not each.empty} | found
        if all(each.kind is not each.VAR_KEYWORD for each in parameters):
            break
    return found


def require_image_data(made: Any, target: str) -> None:
    """Refuse a class whose objects cannot be trained on.

    Raises:
        InputError: it does not derive from `ImageDataModule`.
    """
    from project.datamodules.base import ImageDataModule  # imports torch, as what is asked about did

    if not (isinstance(made, type) and issubclass(made, ImageDataModule)):
        kind = "a LightningDataModule" if hasattr(made, "train_dataloader") else "another class"
        raise InputError(
            f"data._target_={target}: cannot be trained on (expected a class derived from {IMAGE_DATA}, got "
            f"{kind}); derive it from that and write its read(split), as the README shows"
        )
