"""Data sets of Hugging Face on disk: folders of `datasets.save_to_disk`, and Parquet files."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from PIL import __version__ as PILLOW_VERSION
from torch import Tensor

from project.datamodules.base import Split
from project.datamodules.image_base import ImageDataModule
from project.datamodules.loading.image_decoder import DECODER_VERSION, decode_image
from project.datamodules.loading.loader import Images
from project.datamodules.splits import split_size, stratified_split
from project.datamodules.storage import arrow_images
from project.errors import DataError, InputError
from project.runtime.bounds import Range, check_arguments
from project.runtime.devices import available_cpus
from project.runtime.seeding import generator
from project.runtime.text import printable


class HuggingFace(ImageDataModule):
    """Labeled images of a folder that the library `datasets` wrote, or of Parquet files.

    Splits are those of the folder; a missing test split is a stratified sample of the training images. With
    `resize`, images are scaled to `input_shape`. Decoded images are held in memory, and memory-mapped by
    later runs. Files are read by pyarrow; nothing is downloaded.

    Args:
        path: folder of `save_to_disk`, or with Parquet files named after their splits.
        image_column: column of images (default null: by its type, or named image or img).
        label_column: column of labels (default null: by its type, or named label, labels or class).
        test_size: number of test images if there is no test split, or their fraction if below 1 (default
            0.2).
        base: arguments of `ImageDataModule`.

    Raises:
        InputError: pyarrow is not installed, or a column or an argument does not fit.
        DataError: the folder holds no data set, or files or images are damaged.
    """

    DATASET_FACTS: ClassVar[dict[str, Any] | None] = None

    def __init__(
        self,
        path: str,
        image_column: str | None = None,
        label_column: str | None = None,
        test_size: Annotated[float, Range(above=0)] = 0.2,
        **base: Any,
    ) -> None:
        super().__init__(name="huggingface", **base)
        check_arguments("data", HuggingFace, locals())
        self.path = path
        self.image_column = image_column
        self.label_column = label_column
        self.test_size = test_size

    @cached_property
    def splits(self) -> dict[str, list[Path]]:
        """Data files of each split."""
        return arrow_images.find_splits(self.path)

    @cached_property
    def columns(self) -> arrow_images.Columns:
        """Columns of images and labels."""
        return arrow_images.find_columns(self.path, self.image_column, self.label_column)

    @cached_property
    def class_names(self) -> list[str]:
        names = arrow_images.class_names(self.path, self.image_column, self.label_column)
        return [printable(name) for name in names]

    @property
    def source(self) -> str:
        return f"data.path={self.path}"

    @property
    def has_validation(self) -> bool:
        return super().has_validation or "val" in self.splits

    def prepare_data(self) -> None:
        """Check the number of classes.

        Raises:
            InputError: `num_classes` differs from the number of classes.
        """
        if (count := len(self.class_names)) != self.num_classes:
            raise InputError(
                f"data.num_classes={self.num_classes}: {self.path} has {count} classes; set "
                f"data.num_classes={count}, or remove the key"
            )

    def load_split(self, split: Split) -> Images | None:
        """Return the decoded images of a split."""
        if split == "val" and "val" not in self.splits:
            return None
        name = split if split in self.splits else "train"
        files = self.splits[name]
        states = [(str(file), (facts := file.stat()).st_size, facts.st_mtime_ns) for file in files]
        own = [split, *self.columns[:2], self.split_seed, self.test_size, self.input_shape]
        digest = hashlib.sha256(json.dumps([str(Path(self.path).absolute()), own]).encode()).hexdigest()
        return self.image_cache.load(
            f"{Path(self.path).absolute().name}-{split}-{digest[:12]}",
            {
                "files": states,
                "classes": self.class_names,
                "splits": sorted(self.splits),
                "decoder": [DECODER_VERSION, PILLOW_VERSION],
                "may_scale": self.resize is not None,
            },
            lambda: self._decode(name, split),
            channels_last=self.channels_last,
        )

    def _decode(self, name: str, split: Split) -> tuple[Tensor, Tensor]:
        labels = self._labels(name)
        rows = torch.arange(len(labels))
        if split != "val" and "test" not in self.splits:
            size = split_size(self.test_size, len(labels))
            if not 0 < size < len(labels):
                raise InputError(
                    f"data.test_size={self.test_size}: choose 1 to {len(labels) - 1} of the {len(labels)} "
                    f"images in {self.path}, or a fraction below 1"
                )
            train, test = stratified_split(labels, size, generator(self.split_seed, 1))
            rows = test if split == "test" else train
        column = arrow_images.read_column(self.splits[name], self.columns.image)

        def decode(row: int) -> Tensor:
            image = arrow_images.encoded_image(column, row, f"row {row} of {name} in {self.path}")
            return decode_image(image, self.input_shape, may_scale=self.resize is not None)

        with ThreadPoolExecutor(available_cpus()) as threads:  # Pillow decodes without Python's lock
            images = torch.empty((len(rows), *self.input_shape), dtype=torch.uint8)
            for index, image in enumerate(threads.map(decode, rows.tolist())):
                images[index] = image
        return images, labels[rows]

    def _labels(self, name: str) -> Tensor:
        """Return the class numbers (N,) of a split.

        Raises:
            DataError: a label is missing or none of the classes.
        """
        values: Sequence[Any] = arrow_images.read_column(self.splits[name], self.columns.label).to_pylist()
        if self.columns.class_names is None:
            number = {value: index for index, value in enumerate(self._raw_names)}
            values = [number.get(str(value), -1) for value in values]
        wrong = [
            row for row, value in enumerate(values) if value is None or not 0 <= value < self.num_classes
        ]
        if wrong:
            raise DataError(
                f"{self.source}: row {wrong[0]} of {name} has a label outside of the {self.num_classes} "
                f"classes ({len(wrong):,} such rows); remove the rows, or the split"
            )
        return torch.tensor(values)

    @property
    def _raw_names(self) -> tuple[str, ...]:
        return arrow_images.class_names(self.path, self.image_column, self.label_column)
