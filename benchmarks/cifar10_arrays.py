"""CIFAR-10 image files in class folders, decoded once into arrays like those of the official files."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from project.datamodules.storage.class_folders import class_names, find_images

FOLDER = "cifar10_jpeg"
ARRAYS = "cifar10_arrays"


def decoded(data: Path, cache: Path) -> Path:
    """Decode `data/cifar10_jpeg/{train,test}/<class>/*.jpg` unless the decoded arrays are cached.

    Args:
        data: folder with the class folders, or with the official files.
        cache: folder for `cifar10_arrays/{train,test}_images.npy` (N, 32, 32, 3), uint8, and `…_labels.npy`.

    Returns:
        The folder with CIFAR-10: `data` if it contains the official files, otherwise `cache`.
    """
    if (data / "cifar-10-batches-py").is_dir():
        return data
    folder = cache / ARRAYS
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        if (folder / f"{split}_labels.npy").exists():
            continue
        found = find_images(data / FOLDER, data / FOLDER / split, class_names(data / FOLDER))
        images = [np.asarray(Image.open(file)) for file in found.files]
        labels = np.array(found.labels)
        for name, array in (("images", np.stack(images)), ("labels", labels)):
            partial = folder / f"{split}_{name}.{os.getpid()}.npy"
            np.save(partial, array)
            partial.replace(folder / f"{split}_{name}.npy")
    return cache
