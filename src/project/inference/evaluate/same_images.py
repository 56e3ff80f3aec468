"""Check that several networks are evaluated on the same images, and load those images once."""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from project.datamodules.base import ImageDataModule, Split
from project.datamodules.loading.prefetch import naming_worker_failures
from project.errors import InputError
from project.inference.evaluate.forward import set_up_split
from project.inference.load_run import TrainedRun

TRAINING_KEYS = ("seed", "batch_size", "augment")
"""Keys of a data set that have no effect outside training."""
APPEARANCE_KEYS = (
    *(*TRAINING_KEYS, "eval_batch_size", "mean", "std", "channels_last", "image_cache", "prepared"),
    *("num_workers", "memory_budget_mb", "timeout_s", "input_shape", "resize", "grayscale"),
)
"""Keys that do not select images, though they may change how an image looks."""
DIGEST_CHUNK = 1024
"""Images whose digest is updated together."""


class ImageIdentity(NamedTuple):
    """Identity of the images of a split.

    Args:
        labels: labels (N,).
        rows: indices (N,) of the images in the data set's images.
        files: paths of the images; None for images without files.
        shape: input shape (C, H, W).
        digest: digest of all pixels; None if there are files.
        recipe: configuration that selects the images.
    """

    labels: Tensor
    rows: Tensor
    files: list[str] | None
    shape: tuple[int, int, int]
    digest: bytes | None
    recipe: str

    def is_same(self, other: "ImageIdentity") -> bool:
        """Return whether the images and their order are the same, at any size."""
        if not torch.equal(self.labels, other.labels):
            return False
        if self.files is not None or other.files is not None:
            return self.files == other.files
        if self.shape == other.shape:
            return self.digest == other.digest
        return self.recipe == other.recipe and torch.equal(self.rows, other.rows)


@naming_worker_failures()
def require_same_images(networks: Sequence[TrainedRun], split: Split) -> None:
    """Check that a split has the same images for all networks; equal data sets are shared afterwards.

    Args:
        networks: networks whose data sets are not set up yet.
        split: the split.

    Raises:
        InputError: the images differ or cannot be read.
    """
    _share_data(networks)
    first = networks[0]
    others = [other for other in networks[1:] if other.datamodule is not first.datamodule]
    if not others:
        return
    wanted = identify_images(first, split)
    for other in others:
        if not identify_images(other, split).is_same(wanted):
            raise InputError(
                f"run={other.run.shown}: has other images in split={split} than {first.run.shown}; give "
                "data that none was trained on to all (data=… or data.path=…), or combine=none"
            )
        release_data(other, first)


def identify_images(trained: TrainedRun, split: Split) -> ImageIdentity:
    """Return the identity of the images of a split."""
    data = trained.datamodule
    data.prepare_data()
    set_up_split(data, split)
    images, rows = data.part(split)
    files = data.files(split)
    return ImageIdentity(
        labels=images.labels.cpu()[rows],
        rows=rows,
        files=None if files is None else _real_paths(files),
        shape=data.input_shape,
        digest=_digest(data, split) if files is None else None,
        recipe=_as_text(trained.data_config(), without=APPEARANCE_KEYS),
    )


def lend_data(owner: TrainedRun, borrower: TrainedRun) -> None:
    """Give a network the data set of another, with the images already in memory."""
    vars(borrower)["datamodule"] = owner.datamodule


def release_data(trained: TrainedRun, keeper: TrainedRun) -> None:
    """Free a network's images unless `keeper` shares them; they are read again when needed."""
    if trained.datamodule is not keeper.datamodule:
        del vars(trained)["datamodule"]


def _share_data(networks: Sequence[TrainedRun]) -> None:
    owners: dict[str, TrainedRun] = {}
    for trained in networks:
        owner = owners.setdefault(_as_text(trained.data_config(), without=TRAINING_KEYS), trained)
        trained.datamodule  # noqa: B018 (its own classes are checked, even if another one's data is used)
        lend_data(owner, trained)


def _as_text(config: dict[str, Any], without: Sequence[str]) -> str:
    kept = {key: value for key, value in config.items() if key not in without}
    return json.dumps(kept, sort_keys=True, default=str)


def _real_paths(files: Sequence[str]) -> list[str]:
    """Resolve links in the folders of files: one data set may be named by several paths."""
    resolve = cache(os.path.realpath)
    return [os.path.join(resolve(folder), name) for folder, name in map(os.path.split, files)]


def _digest(data: ImageDataModule, split: Split) -> bytes:
    digest = hashlib.sha256()
    for places in torch.arange(data.count(split)).split(DIGEST_CHUNK):
        digest.update(data.pixels(split, places).flatten().numpy().data)
    return digest.digest()
