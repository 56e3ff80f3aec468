"""Checks of the image files of all splits by their headers, before anything is decoded."""

import hashlib
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from project.config.validation.training_length import IMAGE_FOLDER
from project.datamodules.storage.class_folders import class_names, find_images, find_layout
from project.datamodules.storage.image_files import damage_error, read_headers, size_error, too_large_error
from project.errors import DataError, InputError
from project.runtime.text import shown

FEW_FILES = 1000
"""Files that are sooner looked at than it is read whether they were before."""
MOST_NAMED = 5


def refuse_damaged(config: DictConfig) -> None:
    """Refuse images of which one is damaged, or a folder that does not fit the others.

    Args:
        config: composed; of values that cannot be resolved nothing is said.

    Raises:
        DataError: for damaged or missing files, a line each; then how many more there are.
        InputError: for images of several sizes, where they are not scaled.
    """
    if OmegaConf.select(config, "data._target_") != IMAGE_FOLDER:
        return
    try:
        path, classes, resize, shape, prepared = (
            OmegaConf.select(config, f"data.{key}")
            for key in ("path", "classes", "resize", "input_shape", "image_cache")
        )
    except OmegaConfBaseException:  # of the first image, which is damaged
        path, classes, resize, shape, prepared = config.data.path, None, None, None, None
    found = _look(
        str(path),
        tuple(shown(str(name)) for name in classes) if classes is not None else None,
        (int(shape[1]), int(shape[2])) if resize is None and shape is not None else None,
        prepared,
    )
    if found.damage:
        raise DataError("\n".join(found.damage))
    if found.sizes:
        raise InputError("\n".join(found.sizes))


class Problems(NamedTuple):
    """Problems of images, one line each.

    Args:
        damage: files and folders that are damaged or missing.
        sizes: images of another size than the first.
    """

    damage: list[str]
    sizes: list[str]


@cache  # the jobs of a sweep mostly take the same images
def _look(
    path: str, classes: tuple[str, ...] | None, sides: tuple[int, int] | None, prepared: str | None
) -> Problems:
    """Check the headers of the images of all splits.

    Args:
        path: their folder.
        classes: names of the classes, where they are configured.
        sides: height and width of all images, pixels, where they must not be scaled.
        prepared: folder where it is kept that they were found undamaged.
    """
    from PIL import Image

    root = Path(path)
    names = list(classes) if classes is not None else class_names(root)
    damage: list[str] = []
    files: list[str] = []
    for folder in find_layout(root).splits.values():
        try:
            files += find_images(root, folder, names, are_given=classes is not None).files
        except DataError as error:
            damage.append(str(error))
    state = _state(files, sides) if prepared is not None and len(files) > FEW_FILES else ""
    memory = Path(prepared or "") / f"{root.absolute().name}-{_digest(str(root.absolute()))[:12]}.headers"
    if state and not damage and _read(memory) == state:
        return Problems([], [])
    sizes: list[str] = []
    for file, header in zip(files, read_headers(files), strict=True):
        if isinstance(header, Exception):
            damage.append(str(damage_error(file, header)))
        elif (pixels := math.prod(header.size)) > (Image.MAX_IMAGE_PIXELS or math.inf):
            damage.append(str(too_large_error(file, f"{pixels:,} pixels")))
        elif sides and header.size != sides:
            sizes.append(str(size_error(file, header.size, sides)))
    if state and not damage and not sizes:
        _keep(memory, state)
    return Problems(_few(damage), _few(sizes))


def _few(lines: list[str]) -> list[str]:
    if len(lines) <= MOST_NAMED:
        return lines
    key = lines[0].partition(":")[0]
    return [*lines[:MOST_NAMED], f"{key}: … and {len(lines) - MOST_NAMED:,} more, {len(lines):,} in all"]


def _state(files: Sequence[str], sides: tuple[int, int] | None) -> str:
    """A digest of what changes when a file does; empty if one is not there."""
    digest = hashlib.sha256(repr(sides).encode())
    try:
        for file in files:
            facts = os.stat(file)  # noqa: PTH116 - of a million files
            digest.update(os.fsencode(f"{file}\0{facts.st_size}\0{facts.st_mtime_ns}\0"))
    except OSError:
        return ""
    return digest.hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()


def _read(memory: Path) -> str:
    try:
        return memory.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _keep(memory: Path, state: str) -> None:
    with suppress(OSError):  # then it is looked at again
        memory.parent.mkdir(parents=True, exist_ok=True)
        staging = memory.with_name(f".{memory.name}.{os.getpid()}")
        staging.write_text(state, encoding="utf-8")
        staging.replace(memory)
