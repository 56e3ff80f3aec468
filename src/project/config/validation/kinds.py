"""Classes of another kind than their group is for: a LightningModule as `model` would never train itself."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from project.config.validation.signatures import DEEPEST, bases_of

KINDS: Mapping[tuple[str, str], str] = {
    **{
        (package, name): name
        for package in ("lightning", "pytorch_lightning")
        for name in ("LightningModule", "LightningDataModule", "Callback", "Logger", "Trainer")
    },
    ("project", "ImageDataModule"): "ImageDataModule",
    ("torch", "Module"): "nn.Module",
    ("torch", "Optimizer"): "Optimizer",
    ("torch", "LRScheduler"): "LRScheduler",
    ("torch", "Dataset"): "Dataset",
}
"""Base classes by package and name, and what they are called."""

WANTED: Mapping[str, str] = {"model": "nn.Module", "loss": "nn.Module", "data": "ImageDataModule"}
"""The kind of each group's class."""

REMEDIES: Mapping[str, str] = {
    "model": (
        "name a torch.nn.Module that maps images to logits; a LightningModule's own training_step, loss and "
        "optimizer would not be called"
    ),
    "loss": "name a torch.nn.Module that maps logits and targets to their mean loss",
    "data": "name a class derived from project.datamodules.base.ImageDataModule",
}


def wrong_kinds(right: Mapping[str, Any]) -> Iterator[str]:
    """Yield which groups name a class that is certainly of another kind.

    Args:
        right: values that are right by themselves, by dotted key.
    """
    for group in WANTED:
        target = right.get(f"{group}._target_")
        if isinstance(target, str) and (other := kinds_of(target, DEEPEST) - {WANTED[group]}):
            yield refusal(group, target, min(other))


def refusal(group: str, target: str, got: str) -> str:
    """Say that a group's target is, or makes, something of another kind."""
    kind = f"{group}._target_={target}: no class for {group} (expected {WANTED[group]}, got {got})"
    return f"{kind}; {REMEDIES[group]}"


@cache
def kinds_of(target: str, depth: int) -> frozenset[str]:
    """Read from the sources which kinds a class is of; none where they do not say it plainly.

    Args:
        target: dotted name.
        depth: most classes from here to a known base class.
    """
    if kind := KINDS.get((target.partition(".")[0], target.rpartition(".")[2])):
        return frozenset([kind])
    if target.startswith("torch.nn."):  # known without a look into torch's sources, which takes 30 ms
        return frozenset(["nn.Module"])
    if not depth:
        return frozenset()
    return frozenset().union(*(kinds_of(base, depth - 1) for base in bases_of(target)))
