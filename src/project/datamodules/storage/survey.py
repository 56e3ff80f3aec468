"""Headers of image files: gray or colour, and size. Needs no torch."""

import random
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from project.datamodules.storage.class_folders import class_folders, find_layout
from project.datamodules.storage.image_files import NO_PIXELS, ImageWalk, damage_of
from project.errors import DataError

if TYPE_CHECKING:
    import PIL.Image

MOST_OPENED = 2000
"""Headers that are read, in 0.2 s; of more files a sample is, the same one whoever asks."""
THREADS = 8
AT_ONCE = 64
"""Files that a thread takes at a time: handing over each by itself would take as long as reading it."""
ORIENTATION = 0x0112
GRAY_MODES = ("1", "L", "LA", "La", "F")
PALETTES = ("P", "PA")


class Header(NamedTuple):
    """Colour and size of an image, from its file's header.

    Args:
        is_gray: whether the image has no colours.
        size: (H, W) of the upright image, pixels.
    """

    is_gray: bool
    size: tuple[int, int]


class Survey(NamedTuple):
    """Counts of a folder's training images.

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
    walk = ImageWalk(str(find_layout(Path(path)).splits.get("train", path)))
    files = [entry for folder, _ in folders for entry in walk.find(folder) if isinstance(entry, str)]
    if not files:
        raise DataError(f"data.path={path}: no image files in its class folders; see whether they were moved")
    if len(files) > MOST_OPENED:
        rows = random.Random(0).sample(range(len(files)), MOST_OPENED)  # noqa: S311
        files = [files[row] for row in sorted(rows)]
    headers = list(read_headers(files))
    read = [(file, header) for file, header in zip(files, headers, strict=True) if isinstance(header, Header)]
    if not read:
        raise damage_of(files[0], next(error for error in headers if isinstance(error, Exception)))
    of_size = {size: file for file, (_, size) in reversed(read)}
    common = Counter(size for _, (_, size) in read).most_common()
    gray = sum(is_gray for _, (is_gray, _) in read)
    return Survey(gray, len(read) - gray, {size: of_size[size] for size, _ in common})


def read_headers(files: Sequence[str]) -> Iterator[Header | Exception]:
    """Yield the header of each file, or what is wrong with it; by threads, for a network drive's sake."""
    from concurrent.futures import ThreadPoolExecutor

    parts = [files[first : first + AT_ONCE] for first in range(0, len(files), AT_ONCE)]
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as threads:
        warnings.simplefilter("ignore")  # of images that can be read all the same
        for headers in threads.map(_read_part, parts):
            yield from headers


def _read_part(files: Sequence[str]) -> list[Header | Exception]:
    return [_read_header(file) for file in files]


def _read_header(file: str) -> Header | Exception:
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.format in NO_PIXELS:
                raise OSError(f"{image.format} holds no pixels")
            size = image.height, image.width
            # Pillow turns TIFF files by itself, and reads all of a PNG to look for a note behind its pixels.
            if image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info):
                lies = image.getexif().get(ORIENTATION, 1) >= 5  # a phone's upright photo lies on its side
                size = size[::-1] if lies else size
            return Header(_is_gray(image), size)
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
