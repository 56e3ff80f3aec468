"""Image files into pixels, in threads, ahead of the network."""

import os
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import NamedTuple, TypeVar

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from project.datamodules.loading.image_decoder import OutOfRangeError, decode_image
from project.datamodules.loading.prefetch import ahead
from project.datamodules.storage.image_files import PassedOver
from project.errors import one_line
from project.runtime.devices import available_cpus

CHUNK = 16
"""Files that a thread takes at a time: handing over each by itself would take as long as decoding it."""
MOST_THREADS = 16

Item = TypeVar("Item")


class Decoded(NamedTuple):
    """A file and its image, (C, H, W) uint8."""

    file: str
    image: Tensor


def decode_files(
    files: Iterable[str],
    shape: tuple[int, int, int],
    *,
    ahead_by: int,
    threads: int | None = None,
    white_level: float | None = None,
) -> Iterator[Decoded | PassedOver]:
    """Decode files in their order, or say why one is passed over.

    Args:
        files: of any size, mode and format that Pillow reads by itself.
        shape: (C, H, W) that images are brought to, as in training.
        ahead_by: about how many images are decoded before they are asked for.
        threads: that decode; None takes one for each CPU that this process may use.
        white_level: see `decode_image`.
    """
    decode = partial(_decode, shape, white_level)
    threads = threads or min(available_cpus(), MOST_THREADS)
    depth = -(-ahead_by // CHUNK) + threads
    for results in ahead(decode, chunks(files, CHUNK), depth=depth, threads=threads):
        yield from results


def _decode(
    shape: tuple[int, int, int], white_level: float | None, files: list[str]
) -> list[Decoded | PassedOver]:
    return [_decode_one(file, shape, white_level) for file in files]


def _decode_one(file: str, shape: tuple[int, int, int], white_level: float | None) -> Decoded | PassedOver:
    try:
        return Decoded(file, decode_image(file, shape, may_scale=True, white_level=white_level))
    except Exception as error:  # decoders raise anything at a damaged file
        return PassedOver(file, _reason(file, error.__cause__ or error))


def _reason(file: str, error: BaseException) -> str:
    """Why a file cannot be decoded, in a few words."""
    try:
        if os.path.getsize(file) == 0:  # noqa: PTH202
            return "empty"
    except OSError as missing:
        return missing.strerror or one_line(missing)
    if isinstance(error, OutOfRangeError):
        return one_line(error)
    if isinstance(error, UnidentifiedImageError):
        return "no image, or of a kind that Pillow does not know"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"too large ({one_line(error)})"
    if isinstance(error, OSError) and "Ghostscript" in str(error):
        return "PostScript, which is a program: none is run here"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"damaged ({one_line(error)})"


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Consecutive items, `size` at a time."""
    left = iter(items)
    while chunk := list(islice(left, size)):
        yield chunk
