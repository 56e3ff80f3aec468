"""What each group must hold: one object, or a dict of them."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig

GROUPS: Mapping[str, str] = {
    **dict.fromkeys(("model", "data", "augment", "optim", "loss", "trainer"), "choose another option of it"),
    "scheduler": "scheduler=constant keeps the learning rate",
    "callbacks": "leave single ones out, as in '~callbacks.early_stopping'",
    "logger": "logger=none logs nothing",
    "paths": "change single ones, as in paths.outputs=DIR",
}
"""What a configuration must hold, and what to do instead of leaving it out."""

OBJECTS = ("model", "data", "augment", "optim", "scheduler", "loss", "trainer")
"""Groups of one object each."""
FACTORIES = ("optim", "scheduler")
"""Of them, those whose objects are made later, of what is known then."""
DICTS = ("callbacks", "logger")
"""Groups of objects by name."""

KEYS: Mapping[str, str] = {
    "name": "the folder of runs bears it, as in name=trial",
    "seed": "order and weights are drawn from it, as in seed=1",
    "monitor": "checkpoints are chosen by it, as in monitor=val/acc",
    "mode": "max if larger is better, as in mode=max",
    "compile": "true or false, as in compile=false",
    "channels_last": "true or false, as in channels_last=false",
    "deterministic": "true or false, as in deterministic=false",
    "decay_norms_and_biases": "true or false, as in decay_norms_and_biases=true",
    "test_views": "as in test_views=none",
    "ckpt_path": "as in ckpt_path=null",
    "paths.data": "a folder, as in paths.data=data",
    "paths.image_cache": "a folder or null, as in paths.image_cache=null",
    "paths.outputs": "a folder, as in paths.outputs=outputs",
    "paths.run": "the run folder; it follows paths.outputs",
}
"""Single values that every run reads."""

OPTIONAL = ("resume", "resume_force", "layer_decay", "tune", "seeds", "folds", "retry_failed")
"""Others at the top that a run or a sweep reads."""

PRESETS = ("experiment", "sweep", "debug")
"""Groups whose options set keys of others."""


def removed_groups(config: DictConfig) -> Iterator[str]:
    """Yield what was left out and a run cannot do without."""
    for group, remedy in GROUPS.items():
        if not isinstance(config.get(group), DictConfig):
            yield f"~{group}: a run needs it; {remedy}"
    for group, option in config.hydra.runtime.choices.items():
        if group in GROUPS and (not isinstance(option, str) or option.startswith("[")):
            yield f"{group}={option}: one option is needed; -m {group}=A,B runs a job with each"


def removed_keys(leaves: Mapping[str, Any]) -> Iterator[str]:
    """Yield which single values were left out and a run cannot do without.

    Args:
        leaves: all values, by dotted key.
    """
    for key, remedy in KEYS.items():
        if key not in leaves:
            yield f"~{key}: a run needs it; {remedy}"


def wrong_groups(config: DictConfig, leaves: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[str]:
    """Yield where a group is not what it says it is: something to be built.

    Args:
        config: composed.
        leaves: all values, by dotted key.
        right: those that are right by themselves.
    """
    for group in OBJECTS:
        yield from _wrong_target(group, leaves, right)
        partial = bool(right.get(f"{group}._partial_", False))
        if partial != (group in FACTORIES):
            needed = str(group in FACTORIES).lower()
            yield f"{group}._partial_={str(partial).lower()}: must be {needed}; leave it as it is"
    for group in DICTS:
        for name in config[group]:
            key = f"{group}.{name}"
            if not isinstance(config[group]._get_node(name), DictConfig):
                if key in right:
                    yield (
                        f"{key}={right[key]}: is no object (expected keys with a _target_); leave it out "
                        f"with '~{key}'"
                    )
            else:
                for line in _wrong_target(key, leaves, right):
                    near = get_close_matches(name, [str(other) for other in config[group] if other != name])
                    yield line + (f"; did you mean {group}.{near[0]}?" if near else "")


def _wrong_target(place: str, leaves: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[str]:
    key = f"{place}._target_"
    target = right.get(key)
    if (isinstance(target, str) and target.strip()) or (key in leaves and key not in right):
        return
    told = "" if key not in right else f"={target}"
    yield f"{place}._target_{told}: must name a class, as in {place}._target_=package.module.Class"
