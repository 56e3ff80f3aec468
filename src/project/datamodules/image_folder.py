"""Anybody's images: one folder a class, in training and perhaps validation and test folders."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from PIL import __version__ as PILLOW_VERSION
from torch import Tensor

from project.datamodules.base import ImageDataModule, Split
from project.datamodules.loading.file_images import FileImages
from project.datamodules.loading.image_decoder import DECODER, decode_image
from project.datamodules.loading.images import Images, MemoryImages, images_of, stratified_split
from project.datamodules.storage.class_folders import (
    ALL,
    Layout,
    SplitFiles,
    class_names,
    find_images,
    find_layout,
)
from project.datamodules.storage.image_files import sum_up
from project.datamodules.storage.survey import survey
from project.errors import InputError
from project.runtime.bounds import Range
from project.runtime.devices import available_cpus
from project.runtime.seeding import generator
from project.runtime.text import shown

log = logging.getLogger(__name__)

MEBIBYTE = 2**20
MOST_WORKERS = 16
FEW_FILES = 1000
"""Images that are decoded sooner than worker processes are started."""
WORTH_KEEPING = 2**20
"""Bytes of image files that take longer to decode, 0.1 s or more, than a prepared file takes to map."""


class ImageFolder(ImageDataModule):
    """Images in class folders: `path/train/<class>/…`, with `path/val` and `path/test` beside it if there
    are any, or `path/<class>/…` alone (see `find_layout`). What is missing is cut from the training images,
    stratified.

    Files are scaled to `input_shape` without keeping their aspect, and converted to its channels. Where all
    images fit the budget they are decoded once, and mapped at later starts; else worker processes decode
    them as they are needed.

    Args:
        path: the folder.
        test_size: test images cut off where there is no test folder: a number, a fraction below 1, or `all`:
            there is nothing to train on then.
        classes: names of the classes, in the order of the labels; some may have no folder. Null takes those
            of the training folders, sorted.
        memory_budget_mb: most memory, MiB, that decoded training images may take.
        num_workers: processes that decode streamed images; null takes one for each CPU that this process
            may use.
        timeout_s: seconds after which a batch that they have not decoded is an error.
        white_level: value that is white in gray files of more than 8 bits and in those of floats; null takes
            that of their type (see `image_decoder`).
        base: see `ImageDataModule`.
    """

    def __init__(
        self,
        path: str,
        test_size: float | str = 0.2,
        classes: Sequence[str] | None = None,
        memory_budget_mb: Annotated[int, Range(0)] = 4096,
        num_workers: Annotated[int, Range(0, 1024)] | None = None,
        timeout_s: Annotated[float, Range(0)] = 120,
        white_level: Annotated[float, Range(above=0)] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(name="image_folder", **base)
        self.path = Path(path)
        self.test_size = test_size
        if isinstance(test_size, str) and test_size != ALL:
            raise InputError(f"data.test_size={test_size}: a number, a fraction below 1, or {ALL}")
        self.classes = [shown(str(name)) for name in classes] if classes is not None else None
        self.memory_budget_mb = memory_budget_mb
        self.num_workers = min(available_cpus(), MOST_WORKERS) if num_workers is None else num_workers
        if not timeout_s > 0:
            raise InputError(f"data.timeout_s={timeout_s}: must be above 0")
        self.timeout_s = timeout_s
        if white_level is not None and not white_level > 0:
            raise InputError(f"data.white_level={white_level}: must be above 0")
        self.white_level = white_level
        self._files: dict[Split, list[str]] = {}
        self._told: set[Path] = set()
        self._surveyed = False

    @cached_property
    def class_names(self) -> list[str]:
        """Names of the class folders, sorted, unless `classes` names them."""
        return class_names(self.path) if self.classes is None else self.classes

    @cached_property
    def layout(self) -> Layout:
        """Which folders hold the splits; those beside them are told."""
        found = find_layout(self.path)
        if found.unused:
            names = ", ".join(map(shown, found.unused))
            log.info("not used in %s, beside the folders of the splits: %s", self.path, names)
        return found

    @property
    def source(self) -> str:
        """See `ImageDataModule.source`."""
        return f"data.path={self.path}"

    @property
    def validates(self) -> bool:
        """Whether there are validation images: cut off, or in a folder of their own."""
        return super().validates or "val" in self.layout.splits

    def prepare_data(self) -> None:
        """Check the number of classes before anything is decoded; tell if gray and colour are mixed."""
        names = self.class_names
        if len(names) != self.num_classes and self.classes is not None:
            raise InputError(
                f"data.classes={names}: {len(names)} names, while data.num_classes={self.num_classes}"
            )
        if len(names) != self.num_classes:
            raise InputError(
                f"data.num_classes={self.num_classes}: {self.path} has {len(names)} class folders; "
                f"set data.num_classes={len(names)} or leave it out"
            )
        if self.grayscale is None and not self._surveyed:
            self._surveyed, found = True, survey(self.path)
            if found.gray and found.colour:
                log.info(
                    "%s of %s images looked at in %s are gray, the others in colour; all are read as %s "
                    "(data.grayscale)",
                    f"{found.gray:,}",
                    f"{found.opened:,}",
                    self.path,
                    "gray" if self.input_shape[0] == 1 else "colour",
                )

    def read(self, split: Split) -> Images | None:
        """Return the images of a split."""
        if (found := self._labelled_files(split)) is None:
            return None
        self._files[split] = found[0]
        return self._open(*found, split)

    def files(self, split: Split) -> list[str]:
        """See `ImageDataModule.files`: those that were read, whatever became of them since."""
        files = self._files[split if split in self._files else "train"]
        return [files[row] for row in self.part(split).rows.tolist()]

    def _labelled_files(self, split: Split) -> tuple[list[str], Tensor] | None:
        """Files of a split and their labels (N,); None if it is to be cut from the training images."""
        splits = self.layout.splits
        if split == "val" and "val" not in splits:
            return None
        found = self._images(splits.get(split) or splits.get("train", self.path))
        files, labels = found.files, torch.tensor(found.labels)
        if split != "val" and "test" not in splits:
            rows = self._cut(labels, split)
            files, labels = [files[row] for row in rows.tolist()], labels[rows]
        return files, labels

    def _images(self, folder: Path) -> SplitFiles:
        """Walk a split's folder, and tell what is passed over, once."""
        found = find_images(self.path, folder, self.class_names, given=self.classes is not None)
        if found.passed_over and folder not in self._told:
            log.info("passed over in %s: %s", folder, sum_up(found.passed_over, str(folder)))
        self._told.add(folder)
        return found

    def _cut(self, labels: Tensor, split: Split) -> Tensor:
        """Rows of the training or the test images, where one folder holds both."""
        count = len(labels)
        if isinstance(self.test_size, str):
            if split == "test":
                return torch.arange(count)
            raise InputError(
                f"data.test_size={ALL}: the images in {self.path} are all for the test, none is left for "
                f"{split}; choose split=test, or a number"
            )
        size = images_of(self.test_size, count)
        if not 0 < size < count:
            raise InputError(
                f"data.test_size={self.test_size}: choose 1 to {count - 1} of the {count} images in "
                f"{self.path}, or a fraction below 1"
            )
        train, test = stratified_split(labels, size, generator(self.split_seed, 1))
        return test if split == "test" else train

    def _open(self, files: Sequence[str], labels: Tensor, split: Split) -> Images:
        channels, height, width = self.input_shape
        decode = partial(
            decode_image,
            shape=self.input_shape,
            may_scale=self.resize is not None,
            white_level=self.white_level,
        )
        size_mb = len(files) * channels * height * width / MEBIBYTE
        workers = self.num_workers if len(files) > FEW_FILES else 0
        streamed = FileImages(
            files,
            labels,
            decode,
            self.input_shape,
            workers,
            channels_last=self.channels_last,
            timeout_s=self.timeout_s,
        )
        if size_mb <= self.memory_budget_mb:
            return self._decoded(streamed, split)
        log.info(
            "streaming %s images (%.0f MiB decoded, data.memory_budget_mb=%s) with %s workers",
            f"{len(files):,}",
            size_mb,
            self.memory_budget_mb,
            workers,
        )
        return streamed

    def _decoded(self, streamed: FileImages, split: Split) -> Images:
        """All images in memory; mapped from a prepared file if decoding took time at an earlier start."""
        states = [_state(file) for file in streamed.files]
        if sum(size for size, _ in states) < WORTH_KEEPING:
            return MemoryImages(streamed.decoded(), streamed.labels, channels_last=self.channels_last)
        wanted = {
            "folder": str(self.path.absolute()),
            "split": split,
            "cut": [self.split_seed, self.test_size],
            "shape": self.input_shape,
        }
        files = hashlib.sha256(os.fsencode("\0".join(streamed.files)))
        files.update(np.array(states, dtype=np.int64).tobytes() + streamed.labels.numpy().tobytes())
        name = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:12]
        return self.prepared.images(
            f"{self.path.absolute().name}-{split}-{name}",
            {
                "files": files.hexdigest(),
                "decoder": [DECODER, PILLOW_VERSION],
                "may_scale": self.resize is not None,
                "white_level": self.white_level,
            },
            lambda: (streamed.decoded(), streamed.labels),
            channels_last=self.channels_last,
        )


def _state(file: str) -> tuple[int, int]:
    """Size and time of the last change, ns; decoding will tell what is wrong with a file that has none."""
    try:
        facts = os.stat(file)  # noqa: PTH116 - see `image_files`
    except OSError:
        return -1, -1
    return facts.st_size, facts.st_mtime_ns
