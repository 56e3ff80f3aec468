"""Check the headers of the image files of all splits, before any image is decoded."""

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

from project.config.source_index import constant_of
from project.datamodules.storage.class_folders import class_names, find_images, find_layout
from project.datamodules.storage.image_files import damage_error, read_headers, size_error, too_large_error
from project.errors import DataError, InputError
from project.runtime.text import printable

FEW_FILES = 1000
"""Number of files up to which reading all headers is faster than keeping a record of them."""
MAX_NAMED = 5


class Problems(NamedTuple):
    """Problems of image files, one line each.

    Args:
        damage: lines about damaged or missing files and folders.
        sizes: lines about images of unexpected size.
    """

    damage: list[str]
    sizes: list[str]


def refuse_damaged(config: DictConfig) -> None:
    """Refuse damaged images, and folders that do not match the classes.

    Args:
        config: composed configuration; values that cannot be resolved are ignored.

    Raises:
        DataError: files are damaged or missing; one line each, then the number of further ones.
        InputError: images have several sizes, and `data.resize` is null.
    """
    target = OmegaConf.select(config, "data._target_")
    facts = (constant_of(target, "DATASET_FACTS") if isinstance(target, str) else None) or {}
    if "class_folders" not in facts:
        return
    try:
        path, classes, resize, shape, image_cache = (
            OmegaConf.select(config, f"data.{key}")
            for key in (facts["class_folders"], "classes", "resize", "input_shape", "image_cache")
        )
    except OmegaConfBaseException:  # the shape comes from the first image, which is damaged
        path, classes, resize, shape, image_cache = config.data.path, None, None, None, None
    found = _read_headers(
        str(path),
        tuple(printable(str(name)) for name in classes) if classes is not None else None,
        (int(shape[1]), int(shape[2])) if resize is None and shape is not None else None,
        image_cache,
    )
    if found.damage:
        raise DataError("\n".join(found.damage))
    if found.sizes:
        raise InputError("\n".join(found.sizes))


@cache  # most jobs of a sweep use the same images
def _read_headers(
    path: str, classes: tuple[str, ...] | None, sides: tuple[int, int] | None, image_cache: str | None
) -> Problems:
    """Check the headers of the images of all splits.

    Args:
        path: folder of the images.
        classes: configured class names [None].
        sides: required height and width, pixels; None if images are resized.
        image_cache: folder for the record of images that were found undamaged.
    """
    from PIL import Image

    root = Path(path)
    names = list(classes) if classes is not None else class_names(root)
    damage: list[str] = []
    files: list[str] = []
    for folder in find_layout(root).splits.values():
        try:
            files += find_images(root, folder, names, are_configured=classes is not None).files
        except DataError as error:
            damage.append(str(error))
    state = _state(files, sides) if image_cache is not None and len(files) > FEW_FILES else ""
    digest = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()
    memory = Path(image_cache or "") / f"{root.absolute().name}-{digest[:12]}.headers"
    if state and not damage and _text_of(memory) == state:
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
        with suppress(OSError):  # the next run reads the headers again
            memory.parent.mkdir(parents=True, exist_ok=True)
            staging = memory.with_name(f".{memory.name}.{os.getpid()}")
            staging.write_text(state, encoding="utf-8")
            staging.replace(memory)
    return Problems(_first(damage), _first(sizes))


def _first(lines: list[str]) -> list[str]:
    if len(lines) <= MAX_NAMED:
        return lines
    key = lines[0].partition(":")[0]
    return [*lines[:MAX_NAMED], f"{key}: … and {len(lines) - MAX_NAMED:,} more, {len(lines):,} in all"]


def _state(files: Sequence[str], sides: tuple[int, int] | None) -> str:
    """Return a digest of the names, sizes and modification times of files; empty if a file is missing."""
    digest = hashlib.sha256(repr(sides).encode())
    try:
        for file in files:
            facts = os.stat(file)  # noqa: PTH116 - faster, for a million files
            digest.update(os.fsencode(f"{file}\0{facts.st_size}\0{facts.st_mtime_ns}\0"))
    except OSError:
        return ""
    return digest.hexdigest()


def _text_of(memory: Path) -> str:
    try:
        return memory.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
