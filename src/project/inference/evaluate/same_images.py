"""Whether several networks are asked about the same images; the images are in memory once where they are."""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from project.datamodules.base import ImageDataModule, Split
from project.datamodules.loading.workers import naming_worker_failures
from project.errors import InputError
from project.inference.evaluate.forward import set_up
from project.inference.load_run import Trained

IN_TRAINING = ("seed", "batch_size", "augment")
"""Keys of a data set that only matter when a network is trained on it."""
NOT_WHICH = (
    *(*IN_TRAINING, "eval_batch_size", "mean", "std", "channels_last", "prepared", "num_workers"),
    *("memory_budget_mb", "timeout_s", "input_shape", "resize", "grayscale"),
)
"""Keys that do not choose images, though they may change how each is seen."""
AT_ONCE = 1024
"""Images whose digest is updated together."""


class Identity(NamedTuple):
    """Which images a split has.

    Args:
        labels: (N,), and so how many.
        rows: (N,), numbers of the images in the data set's.
        files: of the images, as the system knows them; None if they have none of their own.
        shape: (C, H, W) in which the network sees them.
        digest: of all their pixels; None if there are files.
        recipe: by which they are chosen.
    """

    labels: Tensor
    rows: Tensor
    files: list[str] | None
    shape: tuple[int, int, int]
    digest: bytes | None
    recipe: str

    def same(self, other: "Identity") -> bool:
        """Whether the images are the same, in the same order, however they are seen."""
        if not torch.equal(self.labels, other.labels):
            return False
        if self.files is not None or other.files is not None:
            return self.files == other.files
        if self.shape == other.shape:
            return self.digest == other.digest
        return self.recipe == other.recipe and torch.equal(self.rows, other.rows)


@naming_worker_failures()
def require_same_images(networks: Sequence[Trained], split: Split) -> None:
    """Make sure that a split has the same images for all networks; they share those that are read alike.

    Args:
        networks: whose data sets are not set up yet.
        split: of their data.

    Raises:
        InputError: the images are others, or cannot be read.
    """
    _share_data(networks)
    first = networks[0]
    others = [other for other in networks[1:] if other.datamodule is not first.datamodule]
    if not others:
        return
    wanted = identity_of(first, split)
    for other in others:
        if not identity_of(other, split).same(wanted):
            raise InputError(
                f"run={other.run.shown}: has other images in split={split} than {first.run.shown}; give "
                "data that none was trained on to all (data=… or data.path=…), or combine=none"
            )
        release_data(other, first)


def identity_of(trained: Trained, split: Split) -> Identity:
    """Say which images a split of a network's data has.

    Raises:
        InputError: there are none.
    """
    data = trained.datamodule
    data.prepare_data()
    set_up(data, split)
    images, rows = data.part(split)
    files = data.files(split)
    return Identity(
        labels=images.labels.cpu()[rows],
        rows=rows,
        files=None if files is None else _known(files),
        shape=data.input_shape,
        digest=_digest(data, split) if files is None else None,
        recipe=_as_text(trained.data_config(), NOT_WHICH),
    )


def lend_data(owner: Trained, borrower: Trained) -> None:
    """Have a network use the data set of another, with the images that are in memory already."""
    vars(borrower)["datamodule"] = owner.datamodule


def release_data(trained: Trained, keeper: Trained) -> None:
    """Let go of a network's images, unless another uses them too; they are read again when needed."""
    if trained.datamodule is not keeper.datamodule:
        del vars(trained)["datamodule"]


def _share_data(networks: Sequence[Trained]) -> None:
    owners: dict[str, Trained] = {}
    for trained in networks:
        owner = owners.setdefault(_as_text(trained.data_config(), IN_TRAINING), trained)
        trained.datamodule  # noqa: B018 (checked, whoever's is used)
        lend_data(owner, trained)


def _as_text(config: dict[str, Any], without: Sequence[str]) -> str:
    kept = {key: value for key, value in config.items() if key not in without}
    return json.dumps(kept, sort_keys=True, default=str)


def _known(files: Sequence[str]) -> list[str]:
    """Files by their folders' real names: a data set may be named by several paths."""
    real = cache(os.path.realpath)
    return [os.path.join(real(folder), name) for folder, name in map(os.path.split, files)]


def _digest(data: ImageDataModule, split: Split) -> bytes:
    digest = hashlib.sha256()
    for places in torch.arange(data.count(split)).split(AT_ONCE):
        digest.update(data.pixels(split, places).flatten().numpy().data)
    return digest.digest()
