"""Values that the configuration computes: `${image_shape:…}` and the like. Needs no torch."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import ListConfig, OmegaConf

from project import redaction
from project.datamodules.folders import class_folders, first_image
from project.errors import DataError, InputError, one_line

Size = int | Sequence[int] | None


def image_shape(native: Sequence[int], resize: Size, grayscale: bool | None) -> ListConfig:
    """Shape (C, H, W) of images of shape `native` after resizing and turning gray."""
    channels, height, width = native
    if resize is not None:
        height, width = _sides(resize)
    return ListConfig([1 if grayscale else channels, height, width])


def folder_shape(path: str, resize: Size, grayscale: bool | None) -> ListConfig:
    """Shape (C, H, W) of the images in class folders, read off the first one."""
    from PIL import Image, ImageOps

    file = first_image(Path(path))
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)  # a phone's upright photo lies on its side in the file
            gray = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
            native = [1 if gray else 3, image.height, image.width]
    except Exception as error:  # decoders raise anything at a damaged file
        what = one_line(error)
        raise DataError(f"data.path: {file} is damaged or no image ({what}); mend or remove it") from error
    if grayscale is False:
        native[0] = 3
    return image_shape(native, resize, grayscale)


def folder_classes(path: str) -> int:
    """Number of class folders."""
    return len(class_folders(Path(path)))


def portion(share: float, shape: Sequence[int]) -> int:
    """So many pixels as a share of the shorter side of images (C, H, W)."""
    return round(share * min(shape[1:]))


def _sides(resize: int | Sequence[int]) -> tuple[int, int]:
    sides = [resize, resize] if isinstance(resize, int) else list(resize)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise InputError(f"data.resize={resize}: give a side in pixels, or [height,width]")
    return sides[0], sides[1]


def register() -> None:
    """Make the resolvers known to OmegaConf; may be called again."""
    OmegaConf.register_new_resolver("oc.env", redaction.env, replace=True)
    for resolver in (image_shape, folder_shape, folder_classes, portion):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
