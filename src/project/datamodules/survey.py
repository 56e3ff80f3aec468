"""What the headers of a folder's training images say: gray or colour, and which size. Needs no torch."""

import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from project.datamodules.folders import class_folders, find_layout
from project.datamodules.image_files import ImageWalk
from project.errors import DataError, one_line

if TYPE_CHECKING:
    import PIL.Image

MOST_OPENED = 2000
"""Headers that are read, in 0.2 s; of more files a sample is, the same one whoever asks."""
THREADS = 8
ORIENTATION = 0x0112
GRAY_MODES = ("1", "L", "LA", "La", "F")
PALETTES = ("P", "PA")


class Survey(NamedTuple):
    """What was found.

    Args:
        gray: number of gray images.
        colour: number of others.
        sizes: (H, W) of upright images, the commonest first, each with one file of it.
    """

    gray: int
    colour: int
    sizes: dict[tuple[int, int], str]

    @property
    def opened(self) -> int:
        """Number of images whose headers were read."""
        return self.gray + self.colour


def survey(path: str | Path) -> Survey:
    """Read the headers of a folder's training images, or of a sample of many; remembered while none is added.

    Args:
        path: of the data set.

    Raises:
        InputError: see `class_folders`.
        DataError: no image can be read.
    """
    folders = tuple((str(one), one.stat().st_mtime_ns) for one in class_folders(Path(path)))
    return _survey(str(path), folders, Path.cwd())


@cache
def _survey(path: str, folders: tuple[tuple[str, int], ...], _here: Path) -> Survey:
    from concurrent.futures import ThreadPoolExecutor

    walk = ImageWalk(str(find_layout(Path(path)).splits.get("train", path)))
    files = [entry for folder, _ in folders for entry in walk.find(folder) if isinstance(entry, str)]
    if not files:
        raise DataError(f"data.path={path}: no image files in its class folders; see whether they were moved")
    if len(files) > MOST_OPENED:
        rows = random.Random(0).sample(range(len(files)), MOST_OPENED)  # noqa: S311
        files = [files[row] for row in sorted(rows)]
    with ThreadPoolExecutor(THREADS) as threads:
        headers = list(threads.map(_read_header, files))
    read = [(file, header) for file, header in zip(files, headers, strict=True) if isinstance(header, tuple)]
    if not read:
        what = one_line(next(error for error in headers if isinstance(error, Exception)))
        raise DataError(f"data.path: {files[0]} is damaged or no image ({what}); mend or remove it")
    of_size = {size: file for file, (_, size) in reversed(read)}
    common = Counter(size for _, (_, size) in read).most_common()
    gray = sum(is_gray for _, (is_gray, _) in read)
    return Survey(gray, len(read) - gray, {size: of_size[size] for size, _ in common})


def _read_header(file: str) -> tuple[bool, tuple[int, int]] | Exception:
    """Whether an image is gray, and its (H, W) upright; or what is wrong, which the decoder will tell."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            size = image.height, image.width
            # Pillow turns TIFF files by itself, and reads all of a PNG to look for a note behind its pixels.
            if image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info):
                lies = image.getexif().get(ORIENTATION, 1) >= 5  # a phone's upright photo lies on its side
                size = size[::-1] if lies else size
            return _is_gray(image), size
    except Exception as error:  # plugins raise anything
        return error


def _is_gray(image: "PIL.Image.Image") -> bool:
    if image.mode in PALETTES and image.palette is not None:
        layout = image.palette.rawmode or image.palette.mode
        colours = bytes(image.palette.palette)
        if layout.endswith(";L"):  # one channel behind the other
            third = len(colours) // 3
            return colours[:third] == colours[third : 2 * third] == colours[2 * third : 3 * third]
        width = len(layout)
        return colours[0::width] == colours[1::width] == colours[2::width]
    tiles = getattr(image, "tile", None)
    if (
        image.mode == "RGBA" and tiles and tiles[0][3] == "LA;16B"
    ):  # gray of 16 bits that Pillow gives as RGBA
        return True
    return image.mode in GRAY_MODES or image.mode.startswith("I")
