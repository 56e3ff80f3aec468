"""CIFAR-10: 50,000 training and 10,000 test images of ten classes, 32×32, color."""

import pickle
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from project.datamodules.base import Split
from project.datamodules.downloads import Archive, download_archives, ensure_downloaded, require_undamaged
from project.datamodules.image_base import ImageDataModule
from project.errors import DataError, summarize

FOLDER = Path("cifar-10-batches-py")
TRAINING_FILES = [f"data_batch_{number}" for number in range(1, 6)]
CHECKSUMS = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
ARCHIVES = [
    Archive(
        "cifar-10-python.tar.gz",
        mirrors=["https://www.cs.toronto.edu/~kriz"],
        md5="c58f30108f718f92721af3b95e74349a",
        size=170_498_071,
        members=[f"{FOLDER.name}/{name}" for name in CHECKSUMS],
        unpacked_size=32_000_000,
    )
]
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class CIFAR10(ImageDataModule):
    """CIFAR-10 (Krizhevsky 2009) with its official test split, downloaded.

    Args:
        path: folder of the data sets; its subfolder `cifar-10-batches-py` holds the files.
        input_shape: see `ImageDataModule` (default [3, 32, 32]); other shapes need `resize` or `grayscale`.
        num_classes: 10.
        base: arguments of `ImageDataModule`.
    """

    DATASET_FACTS: ClassVar = {"images": 50_000, "shape": (3, 32, 32), "classes": 10, "download": "path"}

    def __init__(
        self, path: str, *, input_shape: Sequence[int] = (3, 32, 32), num_classes: int = 10, **base: Any
    ) -> None:
        super().__init__(name="cifar10", input_shape=input_shape, num_classes=num_classes, **base)
        self.path = Path(path)

    @property
    def class_names(self) -> list[str]:
        return CLASSES

    def prepare_data(self) -> None:
        download = partial(download_archives, ARCHIVES)
        ensure_downloaded("cifar10", self.path, FOLDER, CHECKSUMS, download, self.image_cache.checksums)

    def cache_key(self, split: Split) -> Mapping[str, Any] | None:
        """Return the checksums of the files: unpickling takes longer than memory-mapping a cached copy."""
        return None if split == "val" else {"files": sorted(CHECKSUMS.items())}

    def load_split(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """Return images (N, 3, 32, 32) uint8 and labels (N,)."""
        if split == "val":
            return None
        # Unpickling can run code: the files must have the published checksums, and hold only arrays.
        require_undamaged("cifar10", self.path, FOLDER, CHECKSUMS, self.image_cache.checksums)
        pixels: list[Any] = []
        labels: list[int] = []
        for name in ["test_batch"] if split == "test" else TRAINING_FILES:
            file = self.path / FOLDER / name
            batch = load_array_pickle(file)
            if not isinstance(batch, dict) or not {"data", "labels"} <= batch.keys():
                raise DataError(f"paths.data={self.path}: {file} holds no images; remove the file")
            pixels.append(batch["data"])
            labels += batch["labels"]
        images = torch.from_numpy(np.concatenate(pixels)).view(-1, 3, 32, 32)
        return images, torch.tensor(labels)


def load_array_pickle(file: Path) -> Any:
    """Read a pickle file of Python 2 that holds plain values and arrays of numbers.

    Raises:
        DataError: the file is missing, is damaged, or names any other object.
    """
    try:
        with file.open("rb") as stream:
            return ArrayUnpickler(stream, encoding="latin1").load()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a damaged pickle raises anything
        raise DataError(
            f"{file} is not a pickle file of arrays ({summarize(error)}); remove it and download it again"
        ) from error


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles only plain values and numeric arrays: pickle calls any function that a file names.

    Method: Python's documentation of pickle, "Restricting Globals".
    """

    def find_class(self, module: str, name: str) -> Any:
        if (found := ALLOWED_GLOBALS.get((module, name))) is None:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a file of arrays")
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("references to external objects are not allowed")


def _empty_array(subtype: object, shape: object, kind: object) -> np.ndarray:
    return np.empty(0, np.int8)  # the next records of the file set shape and values


def _dtype(code: str, *options: object) -> np.dtype[Any]:
    if np.dtype(code).kind not in "biuf":
        raise pickle.UnpicklingError(f"dtype {code} is not numeric")
    return np.dtype(code, copy=True)  # the next record of the file sets the byte order


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text encoding {encoding} (expected latin1)")
    return text.encode(encoding)


# Globals that a file may name, and the functions that replace them.
ALLOWED_GLOBALS: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,  # since NumPy 2
    ("numpy", "ndarray"): object,  # only an argument of _reconstruct
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,  # Python 2 protocols write bytes as encoded text
}
