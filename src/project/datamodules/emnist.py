"""EMNIST: up to 814,255 images of handwritten digits and letters, 28×28, gray."""

import gzip
import string
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from project.datamodules.base import Split
from project.datamodules.downloads import Archive
from project.datamodules.gzipped_idx import parse_idx
from project.datamodules.published import PublishedDataModule
from project.errors import DataError, InputError

Subset = Literal["balanced", "byclass", "bymerge", "letters", "digits", "mnist"]
MD5 = "58c8d27c78d21e728a6bc7b3cc06412e"
# Capitals and small letters of the same shape are one class in some subsets.
MERGED = [*string.digits, *string.ascii_uppercase, *"abdefghnqrt"]
CLASSES: Mapping[str, Sequence[str]] = {
    "balanced": MERGED,
    "byclass": [*string.digits, *string.ascii_uppercase, *string.ascii_lowercase],
    "bymerge": MERGED,
    "letters": [*string.ascii_lowercase],
    "digits": [*string.digits],
    "mnist": [*string.digits],
}


class EMNIST(PublishedDataModule):
    """A subset of EMNIST (Cohen et al. 2017, arXiv 1702.05373) with its official test split, downloaded.

    The files hold transposed images; here characters are upright.

    Args:
        path: folder of the data sets; its subfolder `EMNIST/raw` holds the archive, as in torchvision.
        subset: `balanced` (131,600 images), `byclass` or `bymerge` (814,255), `letters` (145,600), `digits`
            (280,000) or `mnist` (70,000).
        num_classes: 47 for `balanced` and `bymerge`, 62 for `byclass`, 26 for `letters`, 10 for the others.
        base: arguments of `ImageDataModule`.

    Raises:
        InputError: `num_classes` is not that of `subset`.
    """

    DATASET_FACTS: ClassVar = {"shape": (1, 28, 28), "download": "path"}
    NAME = "emnist"
    FOLDER = Path("EMNIST/raw")
    CHECKSUMS: ClassVar = {"gzip.zip": MD5}
    ARCHIVES = (Archive("gzip.zip", ["https://biometrics.nist.gov/cs_links/EMNIST"], MD5, 561_753_746),)

    def __init__(self, path: str, subset: Subset = "balanced", *, num_classes: int = 47, **base: Any) -> None:
        if num_classes != (count := len(CLASSES[subset])):
            raise InputError(
                f"data.num_classes={num_classes}: data.subset={subset} has {count} classes; set "
                f"data.num_classes={count}"
            )
        super().__init__(path, num_classes=num_classes, **base)
        self.subset_name = subset

    @property
    def class_names(self) -> list[str]:
        return list(CLASSES[self.subset_name])

    def cache_key(self, split: Split) -> Mapping[str, Any] | None:
        """Return the checksum of the archive, and the subset."""
        key = super().cache_key(split)
        return None if key is None else {**key, "subset": self.subset_name}

    def load_split(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """Return images (N, 1, 28, 28) uint8 and labels (N,)."""
        if split == "val":
            return None
        file = self.folder / "gzip.zip"
        try:
            with zipfile.ZipFile(file) as archive:
                images, labels = (
                    parse_idx(
                        gzip.decompress(
                            archive.read(f"gzip/emnist-{self.subset_name}-{split}-{kind}-ubyte.gz")
                        )
                    )
                    for kind in ("images-idx3", "labels-idx1")
                )
        except (
            OSError,
            KeyError,
            EOFError,
            ValueError,
            zipfile.BadZipFile,
            zlib.error,
            struct.error,
        ) as error:
            raise DataError(
                f"paths.data={self.path}: {file} is damaged ({error}); remove the file to download it again"
            ) from error
        first = 1 if self.subset_name == "letters" else 0  # label of `a`
        return images.transpose(1, 2)[:, None], labels.long() - first
