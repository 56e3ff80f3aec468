"""Image folders: a user's own images, one folder per class."""

import hashlib
import json
import logging
import os
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from PIL import __version__ as PILLOW_VERSION
from torch import Tensor

from project.datamodules.base import Split
from project.datamodules.image_base import ImageDataModule
from project.datamodules.loading.image_decoder import DECODER_VERSION, decode_image
from project.datamodules.loading.loader import FileImages, Images, MemoryImages
from project.datamodules.splits import split_size, stratified_split
from project.datamodules.storage.class_folders import (
    ALL,
    Layout,
    class_names,
    find_images,
    find_layout,
    survey,
)
from project.datamodules.storage.image_files import summarize_skipped
from project.errors import InputError
from project.runtime.bounds import Range, check_arguments
from project.runtime.devices import available_cpus
from project.runtime.seeding import generator
from project.runtime.text import printable

log = logging.getLogger(__name__)

MEBIBYTE = 2**20
MAX_WORKERS = 16
FEW_FILES = 1000  # up to which decoding takes less time than starting worker processes
MIN_CACHED_BYTES = 2**20  # of image files; fewer decode in 0.1 s, as fast as a cached file is mapped


class ImageFiles(ImageDataModule):
    """Base class of data modules of a user's own image files.

    A subclass implements `labeled_files`. Missing splits are samples of the training images, stratified by
    class. With `resize`, images are scaled to `input_shape`, which may change their aspect ratio. Color is
    converted to the channels of `input_shape`. A split that fits the memory budget is decoded once, and
    memory-mapped by later runs. The images of a larger split are decoded by worker processes in every epoch.

    Args:
        test_size: number of test images if there is no test split, or their fraction if below 1; `all`
            makes every image a test image (default 0.2).
        memory_budget_mb: maximum size of a split's decoded images in memory, MiB (default 4096).
        num_workers: number of processes that decode streamed images (default null: one per available CPU,
            at most 16).
        timeout_s: time after which a batch that the workers do not deliver is an error (default 120 s).
        white_level: value of white in gray files of more than 8 bits or of floats (default null: by the
            file's type, see `image_decoder`).
        base: arguments of `ImageDataModule`.

    Raises:
        InputError: an argument is out of its range, or does not fit the images.
        DataError: images are damaged.
    """

    def __init__(
        self,
        test_size: Annotated[float, Range(above=0)] | str = 0.2,
        memory_budget_mb: Annotated[int, Range(0)] = 4096,
        num_workers: Annotated[int, Range(0, 1024)] | None = None,
        timeout_s: Annotated[float, Range(above=0)] = 120,
        white_level: Annotated[float, Range(above=0)] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        check_arguments("data", ImageFiles, locals())
        if isinstance(test_size, str) and test_size != ALL:
            raise InputError(f"data.test_size={test_size}: expected a number, a fraction below 1, or {ALL}")
        self.test_size = test_size
        self.memory_budget_mb = memory_budget_mb
        self.num_workers = min(available_cpus(), MAX_WORKERS) if num_workers is None else num_workers
        self.timeout_s = timeout_s
        self.white_level = white_level
        self._files: dict[Split, list[str]] = {}
        self._logged: set[str] = set()

    @property
    @abstractmethod
    def location(self) -> Path:
        """Folder or table of the images, absolute; identifies them in the image cache."""

    @abstractmethod
    def labeled_files(self, split: Split) -> tuple[list[str], Tensor] | None:
        """Return the files of a split and their targets (N, …); None if `val` is taken from `train`."""

    def load_split(self, split: Split) -> Images | None:
        """Return the images of a split: in memory if they fit `memory_budget_mb`, otherwise streamed."""
        if (found := self.labeled_files(split)) is None:
            return None
        files, labels = found
        self._files[split] = files
        may_scale = self.resize is not None
        images = FileImages(
            files,
            labels,
            partial(decode_image, shape=self.input_shape, may_scale=may_scale, white_level=self.white_level),
            self.input_shape,
            self.num_workers if len(files) > FEW_FILES else 0,
            channels_last=self.channels_last,
            timeout_s=self.timeout_s,
        )
        channels, height, width = self.input_shape
        size_mb = len(files) * channels * height * width / MEBIBYTE
        if size_mb <= self.memory_budget_mb:
            return self._in_memory(images, split)
        self._log_once(
            f"streaming {len(files):,} images ({size_mb:.0f} MiB decoded, data.memory_budget_mb="
            f"{self.memory_budget_mb}) with {images.workers} workers"
        )
        return images

    def files(self, split: Split) -> list[str]:
        files = self._files[split if split in self._files else "train"]
        return [files[row] for row in self.subset(split).rows.tolist()]

    def _log_once(self, line: str) -> None:
        if line not in self._logged:
            log.info(line)
        self._logged.add(line)

    def _rows_of(self, split: Split, labels: Tensor) -> Tensor:
        """Return the rows of the training or test images in a folder that holds both."""
        count = len(labels)
        if isinstance(self.test_size, str):
            if split == "test":
                return torch.arange(count)
            raise InputError(
                f"data.test_size={ALL}: all images in {self.location} are test images, none remain for "
                f"{split}; set split=test, or give a number"
            )
        size = split_size(self.test_size, count)
        if not 0 < size < count:
            raise InputError(
                f"data.test_size={self.test_size}: choose 1 to {count - 1} of the {count} images in "
                f"{self.location}, or a fraction below 1"
            )
        train, test = stratified_split(self.strata(labels), size, generator(self.split_seed, 1))
        return test if split == "test" else train

    def _in_memory(self, images: FileImages, split: Split) -> Images:
        """Decode all images, or memory-map those that an earlier run cached."""
        states = [_state(file) for file in images.files]
        if sum(size for size, _ in states) < MIN_CACHED_BYTES:
            return MemoryImages(images.decode_all(), images.labels, channels_last=self.channels_last)
        folder = self.location
        wanted = json.dumps([str(folder), split, self.split_seed, self.test_size, self.input_shape])
        files = hashlib.sha256(os.fsencode("\0".join(images.files)))
        files.update(np.array(states, dtype=np.int64).tobytes() + images.labels.numpy().tobytes())
        return self.image_cache.load(
            f"{folder.name}-{split}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}",
            {
                "files": files.hexdigest(),
                "decoder": [DECODER_VERSION, PILLOW_VERSION],
                "may_scale": self.resize is not None,
                "white_level": self.white_level,
            },
            lambda: (images.decode_all(), images.labels),
            channels_last=self.channels_last,
        )


class ImageFolder(ImageFiles):
    """Images in class folders.

    The folder holds `train/<class>/…`, and optionally `val` and `test`, or only `<class>/…` (see
    `find_layout`). Missing splits are stratified samples of the training images.

    Args:
        path: folder of the images.
        classes: class names in the order of the labels; some may have no folder (default null: sorted names
            of the training folders).
        base: arguments of `ImageFiles`.

    Raises:
        InputError: an argument is out of its range, or does not fit the images.
        DataError: folders are missing, empty or ambiguous, or images are damaged.
    """

    DATASET_FACTS: ClassVar = {"class_folders": "path"}

    def __init__(self, path: str, classes: Sequence[str] | None = None, **base: Any) -> None:
        super().__init__(name="image_folder", **base)
        check_arguments("data", ImageFolder, locals())
        self.path = Path(path)
        self.classes = [printable(str(name)) for name in classes] if classes is not None else None

    @property
    def location(self) -> Path:
        return self.path.absolute()

    @cached_property
    def class_names(self) -> list[str]:
        """Names of the classes: `classes`, or the class folders, sorted."""
        return class_names(self.path) if self.classes is None else self.classes

    @cached_property
    def layout(self) -> Layout:
        """Folders of the splits."""
        found = find_layout(self.path)
        if found.unused:
            names = ", ".join(map(printable, found.unused))
            log.info("not used in %s, because it has folders of splits: %s", self.path, names)
        return found

    @property
    def source(self) -> str:
        return f"data.path={self.path}"

    @property
    def has_validation(self) -> bool:
        return super().has_validation or "val" in self.layout.splits

    def prepare_data(self) -> None:
        """Check the number of classes before images are decoded; log a mix of gray and color images.

        Raises:
            InputError: `num_classes` differs from the number of classes.
        """
        names = self.class_names
        if len(names) != self.num_classes:
            if self.classes is not None:
                raise InputError(
                    f"data.classes={names}: {len(names)} names, but data.num_classes={self.num_classes}; "
                    f"set data.num_classes={len(names)}, or correct the names"
                )
            raise InputError(
                f"data.num_classes={self.num_classes}: {self.path} has {len(names)} class folders; "
                f"set data.num_classes={len(names)}, or remove the key"
            )
        if self.grayscale is None:
            found = survey(self.path)
            if found.gray and found.color:
                mode = "gray" if self.input_shape[0] == 1 else "color"
                self._log_once(
                    f"{found.gray:,} of {found.gray + found.color:,} images examined in {self.path} are "
                    f"gray, the others in color; all are read as {mode} (data.grayscale)"
                )

    def labeled_files(self, split: Split) -> tuple[list[str], Tensor] | None:
        """Return the files of a split and their labels (N,); None if `val` is taken from `train`."""
        splits = self.layout.splits
        if split == "val" and "val" not in splits:
            return None
        folder = splits.get(split) or splits.get("train", self.path)
        found = find_images(self.path, folder, self.class_names, are_configured=self.classes is not None)
        if found.skipped:
            self._log_once(f"skipped in {folder}: {summarize_skipped(found.skipped, str(folder))}")
        files, labels = found.files, torch.tensor(found.labels)
        if split != "val" and "test" not in splits:
            rows = self._rows_of(split, labels)
            files, labels = [files[row] for row in rows.tolist()], labels[rows]
        return files, labels


def _state(file: str) -> tuple[int, int]:
    """Return size in bytes and modification time in ns; -1, -1 for a missing file, which decoding reports."""
    try:
        facts = os.stat(file)  # noqa: PTH116 - see `image_files`
    except OSError:
        return -1, -1
    return facts.st_size, facts.st_mtime_ns
