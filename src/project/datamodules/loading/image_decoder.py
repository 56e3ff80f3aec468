"""Image files of any mode and depth as 8-bit pixels: one conversion, for training, tests and predictions.

8-bit values are taken as they are, and colour of 16 bits by its upper 8, as Pillow reads it. Other gray
values are scaled by a white level that is the same for all files, never by what one file holds, which would
change how bright images are beside each other:

- 16 bits without a sign, and PNG and PGM of any depth: 65535, 4095 in TIFF files of 12 bits;
- other integers: 255;
- floats: 1.

Integers and floats have no white level of their own, so these are the lowest that are customary: a file that
was written with another one exceeds it and is refused. `data.white_level` names another one.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import EpsImagePlugin, Image, ImageOps
from torch import Tensor

from project.datamodules.storage.image_files import damage_of, excess_of, mismatch_of
from project.errors import InputError, one_line
from project.runtime.text import shown

EpsImagePlugin.gs_binary = False  # PostScript is a program: Pillow would have Ghostscript run it

DECODER = 2
"""To be raised when `decode_image` gives other pixels: then kept images are made anew."""
STRIP = 256
"""Rows of an image that are scaled at a time, which bounds the memory that it takes."""
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
LOW_DEPTHS = {"L;2": 85, "L;4": 17}
"""By the layout of a PNG's rows, what its gray values are multiplied by when they are read."""


class OutOfRangeError(ValueError):
    """Values of an image lie outside the range from black to white."""


def decode_image(
    file: str | Path, shape: tuple[int, int, int], *, may_scale: bool, white_level: float | None = None
) -> Tensor:
    """Read an image file of any mode.

    Args:
        file: in a format that Pillow reads.
        shape: (C, H, W) of the result; C is 1 or 3.
        may_scale: whether an image of another size is scaled or refused.
        white_level: value that is white in gray files of more than 8 bits and in those of floats; None takes
            that of their type.

    Returns:
        (C, H, W) uint8.

    Raises:
        DataError: the file is damaged, no image, or of more pixels than Pillow warns of (which a small file
            may unpack to).
        InputError: it has another size and must not be scaled, or values below 0 or above the white level.
    """
    channels, height, width = shape
    try:
        with Image.open(file) as opened:
            _refuse_bomb(opened)
            image = _to_eight_bits(opened, white_level)
        if image.mode != (mode := "L" if channels == 1 else "RGB"):
            image = image.convert(mode)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # a warning as an error
        raise excess_of(file, one_line(error)) from error
    except OutOfRangeError as error:
        given = "null" if white_level is None else white_level
        raise InputError(
            f"data.white_level={given}: {shown(str(file))} has {error}; give the value that is white in "
            "all such files, or convert them to 8 bits"
        ) from error
    except Exception as error:  # decoders raise anything at a damaged file
        raise damage_of(file, error) from error
    if image.size != (width, height):
        if not may_scale:
            raise mismatch_of(file, (image.height, image.width), (height, width))
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image))  # H, W or H, W, 3
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)


def _refuse_bomb(image: Image.Image) -> None:
    """Refuse, before it is decoded, what Pillow only warns of: some threads at once may be decoding."""
    pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if most is not None and pixels > most:
        raise Image.DecompressionBombError(f"{pixels:,} pixels, at most {most:,} are read")


class _Encoding(NamedTuple):
    """Encoding of a file's gray values, from its header."""

    white: float
    dtype: type[np.generic] | None  # of integers that Pillow reads with the other kind of sign
    inverted: bool  # black is the white level
    factor: int  # from values as they are in the file to those that Pillow gives


def _encoding(image: Image.Image, white_level: float | None) -> _Encoding:
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode == "F":
        white = 1.0
    elif image.mode.startswith("I;16") or image.format in ("PPM", "PNG"):
        white = 4095 if tags.get(BITS) == (12,) else 65535
    else:
        white = 255
    tiles: Any = getattr(image, "tile", None)
    rows = tiles[0][3] if tiles else None
    signed = tags.get(SAMPLE_FORMAT, (1,))[0] == 2
    dtypes: dict[tuple[str, bool], type[np.generic]] = {("L", True): np.int8, ("I", False): np.uint32}
    return _Encoding(
        white if white_level is None else white_level,
        dtype=dtypes.get((image.mode, signed)) if tags else None,
        inverted=tags.get(PHOTOMETRIC) == 0,
        factor=LOW_DEPTHS.get(rows, 1) if isinstance(rows, str) else 1,
    )


def _to_eight_bits(opened: Image.Image, white_level: float | None) -> Image.Image:
    """Bring an image upright, into a mode that has 8 bits and converts to gray and RGB, on white."""
    encoding = _encoding(opened, white_level)
    deep = opened.mode.startswith(("I", "F"))
    image = ImageOps.exif_transpose(opened)
    clear = image.info.get("transparency")
    if deep or encoding.dtype:
        values = np.asarray(image)  # H, W
        pixels = _scale(values.view(encoding.dtype or values.dtype), encoding)
        if isinstance(clear, int):  # the value of pixels that nothing covers
            pixels[values == clear] = 255
        return Image.fromarray(pixels)
    if isinstance(clear, tuple) and max(clear) > 255:  # of 16 bits, while the pixels have their upper 8
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    elif isinstance(clear, int) and image.mode == "L":
        image.info["transparency"] = clear * encoding.factor
    if image.mode == "La":  # which converts to nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour)
    return image.convert("RGB") if image.mode == "LAB" else image


def _scale(values: NDArray[Any], encoding: _Encoding) -> NDArray[np.uint8]:
    """Scale gray values (H, W) of any type, 0 to the white level, to 0 to 255, rounded."""
    low, high = values.min(), values.max()
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError("it holds values that are nan or inf")
    if not -0.5 < 255 * float(low) / encoding.white <= 255 * float(high) / encoding.white < 255.5:
        raise OutOfRangeError(
            f"values from {low:g} to {high:g} ({values.dtype.name}; expected 0 to {encoding.white:g})"
        )
    pixels = np.empty(values.shape, dtype=np.uint8)
    for top in range(0, len(values), STRIP):
        levels = np.rint(values[top : top + STRIP].astype(np.float64) * 255 / encoding.white)
        pixels[top : top + STRIP] = 255 - levels if encoding.inverted else levels
    return pixels
