"""Where the images of a folder data set lie. Needs no torch: the configuration is made from it."""

import os
from pathlib import Path

from project.errors import DataError, InputError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"})
ENDINGS = tuple(EXTENSIONS)
SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}
ALL = "all"
"""As `data.test_size`: all images are test images."""


def split_folder(path: Path, split: str) -> Path | None:
    """Folder of a split below `path`; `path` itself for `train` if it holds the classes directly."""
    for name in SPLIT_NAMES[split]:
        if (path / name).is_dir():
            return path / name
    if split == "train":
        return path
    return None


def class_folders(path: Path) -> list[Path]:
    """Class folders of the training images, sorted by name.

    Raises:
        InputError: `path` is no folder.
        DataError: it holds fewer than two class folders.
    """
    if not path.is_dir():
        raise InputError(f"data.path={path}: no such folder; give one that holds a folder for each class")
    folder = split_folder(path, "train")
    assert folder is not None
    found = subfolders(folder)
    if len(found) < 2:
        raise DataError(
            f"data.path={path}: {len(found)} class folders in {folder}, at least 2 are needed "
            f"(train/<class>/*.jpg or <class>/*.jpg)"
        )
    return found


def subfolders(folder: Path) -> list[Path]:
    """Folders in `folder`, sorted by name, hidden ones left out."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return [folder / name for name in names]


def image_files(folder: Path) -> list[str]:
    """Image files in `folder` and below it, sorted as paths are: folder by folder.

    They are no `Path`s: making, comparing and hashing those takes longer than the rest of a start.
    """
    found: list[str] = []
    parents = 0
    for parent, _, names in os.walk(folder, followlinks=True):
        inside = os.path.join(parent, "")
        found += [inside + name for name in sorted(names) if _is_image(name)]
        parents += 1
    return sorted(found, key=lambda file: file.split(os.sep)) if parents > 1 else found


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


def first_image(path: Path) -> Path:
    """The first training image.

    Raises:
        DataError: there is none.
    """
    for folder in class_folders(path):
        if files := image_files(folder):
            return Path(files[0])
    raise DataError(f"data.path={path}: no image files ({' '.join(sorted(EXTENSIONS))}) in its class folders")
