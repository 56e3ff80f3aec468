"""Image decoder: files of any mode and bit depth to 8-bit pixels, for training, tests and predictions.

8-bit values stay unchanged. Pillow reduces 16-bit color to the upper 8 bits. Other gray values are scaled
by the white level, which is the same for all files, so that their brightness is comparable:

- 65535 for unsigned 16-bit integers, and for PNG and PGM of any depth above 8 bits;
- 4095 for 12-bit TIFF;
- 255 for other integers;
- 1 for floats.

Files of the last two types do not state a white level. The defaults are the lowest in common use, so an image
with a higher one exceeds them and is rejected. `data.white_level` overrides all of them.
"""

from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import EpsImagePlugin, Image, ImageOps
from torch import Tensor

from project.datamodules.storage.image_files import damage_error, size_error, too_large_error
from project.errors import InputError, one_line
from project.runtime.text import printable

EpsImagePlugin.gs_binary = False  # PostScript files are programs; Pillow must not run Ghostscript

DECODER_VERSION = 3  # part of the image cache's key; increase it whenever `decode_image` returns other pixels
STRIP_ROWS = 256  # rows scaled at a time, to limit the memory of their float64 copies
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
# Integers in TIFF files that Pillow reads with the wrong sign, by mode and sign.
MISREAD_TYPES: dict[tuple[str, bool], type[np.generic]] = {("L", True): np.int8, ("I", False): np.uint32}
# Factors by which Pillow scales gray values of 2-bit and 4-bit PNG files, by raw mode of the rows.
LOW_DEPTH_FACTORS = {"L;2": 85, "L;4": 17}


class OutOfRangeError(ValueError):
    """Pixel values below 0 or above the white level."""


def decode_image(
    file: str | Path | IO[bytes],
    shape: tuple[int, int, int],
    *,
    may_scale: bool,
    white_level: float | None = None,
) -> Tensor:
    """Decode an image file of any mode to a tensor (C, H, W) uint8, upright, on a white background.

    Args:
        file: image file in a format that Pillow reads, or its content.
        shape: (C, H, W) of the result; C is 1 or 3.
        may_scale: scale an image of another size instead of raising an error.
        white_level: value of white in gray files of more than 8 bits or of floats (default None: by the
            file's type, see above).

    Raises:
        DataError: the file is damaged, not an image, or larger than `PIL.Image.MAX_IMAGE_PIXELS`.
        InputError: the image has another size and `may_scale` is False, or values below 0 or above the white
            level.
    """
    channels, height, width = shape
    try:
        with Image.open(file) as opened:
            # Pillow only warns; turning warnings into errors would affect all threads of the process.
            pixels, most = opened.width * opened.height, Image.MAX_IMAGE_PIXELS
            if most is not None and pixels > most:
                raise Image.DecompressionBombError(f"{pixels:,} pixels, at most {most:,} are read")
            if may_scale:
                # A JPEG decoder scales by 1/2, 1/4 or 1/8 at a fraction of the cost (no other decoder does).
                # From twice the wanted size on, scaled photos differ by less than 1 of 255 on average.
                side = 2 * max(height, width)  # of images of any orientation
                opened.draft(opened.mode, (side, side))
            image = _to_eight_bits(opened, white_level)
        if image.mode != (mode := "L" if channels == 1 else "RGB"):
            image = image.convert(mode)
    except (
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:  # users may have made it an error
        raise too_large_error(file, one_line(error)) from error
    except OutOfRangeError as error:
        given = "null" if white_level is None else white_level
        raise InputError(
            f"data.white_level={given}: {printable(str(file))} has {error}; set data.white_level to the "
            "value of white in all such files, or convert them to 8 bits"
        ) from error
    except Exception as error:  # decoders raise any exception on damaged files
        raise damage_error(file, error) from error
    if image.size != (width, height):
        if not may_scale:
            raise size_error(file, (image.height, image.width), (height, width))
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    decoded = torch.from_numpy(np.array(image))  # H, W or H, W, 3
    return decoded[None] if channels == 1 else decoded.permute(2, 0, 1)


def _to_eight_bits(opened: Image.Image, white_level: float | None) -> Image.Image:
    """Return the image upright, on white, in an 8-bit mode that converts to L and RGB."""
    tags: Any = getattr(opened, "tag_v2", {})
    tiles: Any = getattr(opened, "tile", None)  # removed once the pixels are read
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
        if tags.get(PHOTOMETRIC) == 0:  # WhiteIsZero: 0 is white
            pixels = 255 - pixels
        if isinstance(transparent, int):  # the value of transparent pixels
            pixels[values == transparent] = 255
        return Image.fromarray(pixels)
    if (
        isinstance(transparent, tuple) and max(transparent) > 255
    ):  # 16-bit values, but the pixels hold the upper 8 bits
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    elif isinstance(transparent, int) and image.mode == "L":
        image.info["transparency"] = transparent * factor
    if image.mode == "La":  # converts to no other mode
        image = image.convert("LA")
    if image.has_transparency_data:
        color = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", color.size, "white"), color)
    return image.convert("RGB") if image.mode == "LAB" else image


def _default_white_level(image: Image.Image, tags: Any) -> float:
    """Return the default white level for the type in a file's header."""
    if image.mode == "F":
        return 1.0
    if image.mode.startswith("I;16") or image.format in ("PPM", "PNG"):
        return 4095 if tags.get(BITS_PER_SAMPLE) == (12,) else 65535
    return 255


def _scale(values: NDArray[Any], white: float) -> NDArray[np.uint8]:
    """Scale gray values (H, W) of any dtype from [0, white] to [0, 255], rounded.

    Raises:
        ValueError: a value is NaN or infinite.
        OutOfRangeError: a value is below 0 or above `white`.
    """
    low, high = values.min(), values.max()
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError("values are NaN or infinite")
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
