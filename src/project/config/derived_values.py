"""Values that follow from others: constructor defaults, absolute paths, groups that a run does not use.

- A YAML file may leave out keys that other groups refer to if the constructor has defaults for them.
- Relative paths start from the working directory of the command, even with `hydra.job.chdir=true`.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, open_dict

from project.config import metrics, parts
from project.config.signatures import Signature, signature_of
from project.config.validation.command_request import overrides_of
from project.config.validation.declared_keys import declared_values
from project.runtime.process import command_state
from project.runtime.yaml_files import raw_child

PATHS = re.compile(
    r"paths\.(?!run$)\w+|ckpt_path|task\.teacher|(data|model)\.(\w+_)?(path|root|dir|folder|file|table|weights|image_cache)"
)
"""Keys whose values are paths."""
GROUP_DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "data": ("input_shape", "num_classes", "batch_size", "val_size"),
    "trainer": (
        *("accelerator", "devices", "num_nodes", "precision", "max_epochs", "max_steps", "max_time"),
        *("limit_val_batches", "accumulate_grad_batches", "gradient_clip_val"),
    ),
}
"""Arguments that other groups refer to, filled in from the constructor if the YAML file lacks them."""


def complete(config: DictConfig, hydra: DictConfig | None = None) -> None:
    """Fill in missing values of a configuration, and remove groups that the run does not use.

    Args:
        config: composed configuration, changed in place.
        hydra: Hydra's own node, if the configuration does not contain it [None].
    """
    hydra = config.get("hydra") or hydra
    if hydra is not None:
        overridden = frozenset(text.partition("=")[0].lstrip("+") for text in overrides_of(hydra))
        parts.drop_former_arguments(config, declared_values(config, hydra), overridden)
    parts.drop_unused_groups(config)
    command_state.folder = Path(hydra.runtime.cwd) if hydra is not None and hydra.job.chdir else None
    if hydra is not None and hydra.job.chdir:
        _make_paths_absolute(config, Path(hydra.runtime.cwd))
    for group, keys in GROUP_DEFAULTS.items():
        node = raw_child(config, group)
        if not isinstance(node, DictConfig):
            continue
        there = set(node)  # `in` is false for a value of ???
        target = raw_child(node, "_target_")
        found = signature_of(target) if isinstance(target, str) and "${" not in target else None
        if isinstance(found, Signature):
            missing = {key: found.defaults[key] for key in keys if key in found.defaults and key not in there}
            with open_dict(node):
                node.update(missing)
    metrics.fill_arguments(config)


def _make_paths_absolute(config: DictConfig, start: Path) -> None:
    for group in ("", "paths", "data", "model", "task"):
        node = raw_child(config, group) if group else config
        for name in map(str, node) if isinstance(node, DictConfig) else ():
            value = raw_child(node, name)
            if not PATHS.fullmatch(f"{group}.{name}".lstrip(".")) or not isinstance(value, str) or not value:
                continue
            is_name = name.endswith("weights") and not (start / value).exists()  # a name of torchvision
            if "${" not in value and "://" not in value and value != "???" and not is_name:
                node[name] = str(start / value)
