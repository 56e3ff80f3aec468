"""Base class of published data sets that are downloaded to the folder of data sets."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from project.datamodules.base import Split
from project.datamodules.downloads import Archive, download_archives, ensure_downloaded, require_undamaged
from project.datamodules.image_base import ImageDataModule


class PublishedDataModule(ImageDataModule):
    """Base class of published data sets with an official test split.

    A subclass sets the class attributes and implements `load_split`. Its images are decoded once and
    memory-mapped by later runs.

    Args:
        path: folder of the data sets; its subfolder `FOLDER` holds the files.
        input_shape: see `ImageDataModule` (default: that of the data set); other shapes need `resize` or
            `grayscale`.
        num_classes: number of classes (default: that of the data set).
        base: arguments of `ImageDataModule`.
    """

    NAME: ClassVar[str]
    """Name of the data set, as in `data=…`."""
    FOLDER: ClassVar[Path]
    """Folder of the files, relative to the folder of the data sets."""
    CHECKSUMS: ClassVar[Mapping[str, str]]
    """MD5 of each file, by its name."""
    ARCHIVES: ClassVar[Sequence[Archive]]
    CLASSES: ClassVar[Sequence[str]] = ()
    """Class names in the order of the labels; empty: the numbers of the classes."""

    def __init__(
        self, path: str, *, input_shape: Sequence[int] = (), num_classes: int = 0, **base: Any
    ) -> None:
        facts = self.DATASET_FACTS or {}
        super().__init__(
            name=self.NAME,
            input_shape=input_shape or facts["shape"],
            num_classes=num_classes or facts["classes"],
            **base,
        )
        self.path = Path(path)

    @property
    def folder(self) -> Path:
        """Folder of the files."""
        return self.path / self.FOLDER

    @property
    def class_names(self) -> list[str]:
        return list(self.CLASSES) or super().class_names

    def prepare_data(self) -> None:
        download = partial(download_archives, self.ARCHIVES)
        ensure_downloaded(
            self.NAME, self.path, self.FOLDER, self.CHECKSUMS, download, self.image_cache.checksums
        )

    def cache_key(self, split: Split) -> Mapping[str, Any] | None:
        """Return the checksums of the files."""
        return None if split == "val" else {"files": sorted(self.CHECKSUMS.items())}

    def require_undamaged(self) -> None:
        """Check the files.

        Raises:
            DataError: a file is missing or damaged.
        """
        require_undamaged(self.NAME, self.path, self.FOLDER, self.CHECKSUMS, self.image_cache.checksums)
