"""Decoding of image files of any mode and depth to 8-bit pixels, for training, tests and predictions.

8-bit values are taken as they are, and 16-bit colour by its upper 8 bits, as Pillow reads it. Other gray
values are scaled by a white level that is the same for all files: scaling by what one file holds would change
how bright images are beside each other. The white level is

- 65535 for unsigned 16 bits, and PNG and PGM of any depth; 4095 for TIFF files of 12 bits;
- 255 for other integers;
- 1 for floats.

Other integers and floats state no white level: these are the lowest customary ones, so that a file with
another one exceeds it and is refused. `data.white_level` sets it.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import EpsImagePlugin, Image, ImageOps
from torch import Tensor

from project.datamodules.storage.image_files import damage_error, size_error, too_large_error
from project.errors import InputError, one_line
from project.runtime.text import printable

EpsImagePlugin.gs_binary = False  # PostScript is a program, which Pillow would run by Ghostscript

DECODER_VERSION = 2
"""Part of the key of cached images; to be raised when `decode_image` gives other pixels."""
STRIP = 256
"""Rows of an image that are scaled at a time, which bounds the memory of the floats."""
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
LOW_DEPTHS = {"L;2": 85, "L;4": 17}
"""Factor of gray values that Pillow applies to PNG files of low depth, by the raw mode of their rows."""


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
            _refuse_bomb(opened)
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
    pixels = torch.from_numpy(np.array(image))  # H, W or H, W, 3
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)


def _refuse_bomb(image: Image.Image) -> None:
    # Pillow only warns, and a filter that makes the warning an error would hold for all threads.
    pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if most is not None and pixels > most:
        raise Image.DecompressionBombError(f"{pixels:,} pixels, at most {most:,} are read")


class _Encoding(NamedTuple):
    """Encoding of a file's gray values, from its header."""

    white: float
    dtype: type[np.generic] | None  # of integers whose sign Pillow reads wrongly
    is_inverted: bool  # black is the white level
    factor: int  # from values in the file to those that Pillow returns


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
    is_signed = tags.get(SAMPLE_FORMAT, (1,))[0] == 2
    dtypes: dict[tuple[str, bool], type[np.generic]] = {("L", True): np.int8, ("I", False): np.uint32}
    return _Encoding(
        white if white_level is None else white_level,
        dtype=dtypes.get((image.mode, is_signed)) if tags else None,
        is_inverted=tags.get(PHOTOMETRIC) == 0,
        factor=LOW_DEPTHS.get(rows, 1) if isinstance(rows, str) else 1,
    )


def _to_eight_bits(opened: Image.Image, white_level: float | None) -> Image.Image:
    """Return an upright image on white, in a mode of 8 bits that converts to gray and RGB."""
    encoding = _encoding(opened, white_level)
    is_deep = opened.mode.startswith(("I", "F"))
    image = ImageOps.exif_transpose(opened)
    clear = image.info.get("transparency")
    if is_deep or encoding.dtype:
        values = np.asarray(image)  # H, W
        pixels = _scale(values.view(encoding.dtype or values.dtype), encoding)
        if isinstance(clear, int):  # the value of transparent pixels
            pixels[values == clear] = 255
        return Image.fromarray(pixels)
    if isinstance(clear, tuple) and max(clear) > 255:  # of 16 bits, while the pixels have their upper 8
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    elif isinstance(clear, int) and image.mode == "L":
        image.info["transparency"] = clear * encoding.factor
    if image.mode == "La":  # converts to nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour)
    return image.convert("RGB") if image.mode == "LAB" else image


def _scale(values: NDArray[Any], encoding: _Encoding) -> NDArray[np.uint8]:
    """Scale gray values (H, W) of any type from 0 … white level to 0 … 255, rounded."""
    low, high = values.min(), values.max()
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError("it holds values that are NaN or infinite")
    if not -0.5 < 255 * float(low) / encoding.white <= 255 * float(high) / encoding.white < 255.5:
        raise OutOfRangeError(
            f"values from {low:g} to {high:g} ({values.dtype.name}; expected 0 to {encoding.white:g})"
        )
    pixels = np.empty(values.shape, dtype=np.uint8)
    for top in range(0, len(values), STRIP):
        levels = np.rint(values[top : top + STRIP].astype(np.float64) * 255 / encoding.white)
        pixels[top : top + STRIP] = 255 - levels if encoding.is_inverted else levels
    return pixels
