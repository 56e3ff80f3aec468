"""Decoding of image files of any mode and depth to 8-bit pixels, for training, tests and predictions.

8-bit values are taken as they are, and 16-bit colour by its upper 8 bits, as Pillow reads it. Other gray
values are scaled by a white level that is the same for all files, so that their brightness compares. It is

- 65535 for unsigned 16 bits, and PNG and PGM of any depth; 4095 for TIFF files of 12 bits;
- 255 for other integers;
- 1 for floats.

Other integers and floats state no white level: these are the lowest customary ones, so that a file with
another one exceeds it and is refused. `data.white_level` sets it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import EpsImagePlugin, Image, ImageOps
from torch import Tensor

from project.datamodules.storage.image_files import damage_error, size_error, too_large_error
from project.errors import InputError, one_line
from project.runtime.text import printable

EpsImagePlugin.gs_binary = False  # PostScript is a program, which Pillow would run by Ghostscript

DECODER_VERSION = 2  # part of the key of cached images; to be raised when `decode_image` gives other pixels
STRIP_ROWS = 256  # rows of an image that are scaled at a time, which bounds the memory of the floats
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
# Integers in TIFF files that Pillow reads with the wrong sign, by mode and sign.
MISREAD_TYPES: dict[tuple[str, bool], type[np.generic]] = {("L", True): np.int8, ("I", False): np.uint32}
# Factor of gray values that Pillow applies to PNG files of low depth, by the raw mode of their rows.
LOW_DEPTH_FACTORS = {"L;2": 85, "L;4": 17}


class OutOfRangeError(ValueError):
    """Values of an image outside the range from black to white."""


def decode_image(
    file: str | Path, shape: tuple[int, int, int], *, may_scale: bool, white_level: float | None = None
) -> Tensor:
    """Read an image file of any mode into (C, H, W) uint8.

    Args:
        file: in a format that Pillow reads.
        shape: (C, H, W) of the result; C is 1 or 3.
        may_scale: scale an image of another size instead of refusing it.
        white_level: value of white in gray files of more than 8 bits and in those of floats (default None:
            that of their type).

    Raises:
        DataError: the file is damaged, no image, or has more pixels than Pillow warns of, to which a small
            file may unpack.
        InputError: it has another size and must not be scaled, or values below 0 or above the white level.
    """
    channels, height, width = shape
    try:
        with Image.open(file) as opened:
            # Pillow only warns, and a filter that makes the warning an error would hold for all threads.
            pixels, most = opened.width * opened.height, Image.MAX_IMAGE_PIXELS
            if most is not None and pixels > most:
                raise Image.DecompressionBombError(f"{pixels:,} pixels, at most {most:,} are read")
            image = _to_eight_bits(opened, white_level)
        if image.mode != (mode := "L" if channels == 1 else "RGB"):
            image = image.convert(mode)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # warnings may be errors
        raise too_large_error(file, one_line(error)) from error
    except OutOfRangeError as error:
        given = "null" if white_level is None else white_level
        raise InputError(
            f"data.white_level={given}: {printable(str(file))} has {error}; give the value of white in all "
            "such files, or convert them to 8 bits"
        ) from error
    except Exception as error:  # decoders raise anything at a damaged file
        raise damage_error(file, error) from error
    if image.size != (width, height):
        if not may_scale:
            raise size_error(file, (image.height, image.width), (height, width))
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    decoded = torch.from_numpy(np.array(image))  # H, W or H, W, 3
    return decoded[None] if channels == 1 else decoded.permute(2, 0, 1)


def _to_eight_bits(opened: Image.Image, white_level: float | None) -> Image.Image:
    """Return an upright image on white, in a mode of 8 bits that converts to gray and RGB."""
    tags: Any = getattr(opened, "tag_v2", {})
    tiles: Any = getattr(opened, "tile", None)  # gone once the pixels are read
    factor = LOW_DEPTH_FACTORS.get(tiles[0][3], 1) if tiles and isinstance(tiles[0][3], str) else 1
    is_signed = tags.get(SAMPLE_FORMAT, (1,))[0] == 2
    dtype = MISREAD_TYPES.get((opened.mode, is_signed)) if tags else None
    is_deep = opened.mode.startswith(("I", "F"))
    white = _default_white_level(opened, tags) if white_level is None else white_level
    image = ImageOps.exif_transpose(opened)
    transparent = image.info.get("transparency")
    if is_deep or dtype:
        values = np.asarray(image)  # H, W
        pixels = _scale(values.view(dtype or values.dtype), white)
        if tags.get(PHOTOMETRIC) == 0:  # black is the white level
            pixels = 255 - pixels
        if isinstance(transparent, int):  # the value of transparent pixels
            pixels[values == transparent] = 255
        return Image.fromarray(pixels)
    if (
        isinstance(transparent, tuple) and max(transparent) > 255
    ):  # of 16 bits, while the pixels have their upper 8
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    elif isinstance(transparent, int) and image.mode == "L":
        image.info["transparency"] = transparent * factor
    if image.mode == "La":  # converts to nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour)
    return image.convert("RGB") if image.mode == "LAB" else image


def _default_white_level(image: Image.Image, tags: Any) -> float:
    """Return the white level of a file's type, by its header."""
    if image.mode == "F":
        return 1.0
    if image.mode.startswith("I;16") or image.format in ("PPM", "PNG"):
        return 4095 if tags.get(BITS_PER_SAMPLE) == (12,) else 65535
    return 255


def _scale(values: NDArray[Any], white: float) -> NDArray[np.uint8]:
    """Scale gray values (H, W) of any type from 0 … `white` to 0 … 255, rounded."""
    low, high = values.min(), values.max()
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError("it holds values that are NaN or infinite")
    if not -0.5 < 255 * float(low) / white <= 255 * float(high) / white < 255.5:
        raise OutOfRangeError(
            f"values from {low:g} to {high:g} ({values.dtype.name}; expected 0 to {white:g})"
        )
    pixels = np.empty(values.shape, dtype=np.uint8)
    for top in range(0, len(values), STRIP_ROWS):
        pixels[top : top + STRIP_ROWS] = np.rint(
            values[top : top + STRIP_ROWS].astype(np.float64) * 255 / white
        )
    return pixels
