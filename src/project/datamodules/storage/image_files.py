"""Image files in a folder tree: search and headers, shared by training, checks and prediction.

Does not import torch. Paths are strings: for a million files, making `Path` objects takes longer
than the search.
"""
# ruff: noqa: PTH114, PTH116

import os
import stat
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from project.errors import DataError, InputError, one_line
from project.runtime.text import printable

if TYPE_CHECKING:
    import PIL.Image

EXTENSIONS = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".avif", ".jp2", ".bmp", ".tif"),
        *(".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico"),
    }
)
"""Extensions of files that are accepted unopened; other files are accepted by their first bytes."""
# Formats that Pillow identifies, but decodes only with other programs.
UNDECODABLE_FORMATS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "__pycache__", "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini", "recycler"),
        *("$recycle.bin", "system volume information", "@eadir", "@recycle", "#recycle", "#snapshot"),
    }
)
"""Files and folders that operating systems and network drives create, in lower case."""
HIDDEN, SYSTEM = "hidden", "system file"
SEEN_FOLDER, LINK_BACK, SEEN_FILE = (
    "duplicate folder",
    "link to a searched folder",
    "duplicate file",
)
UNIMPORTANT = (HIDDEN, SYSTEM, SEEN_FOLDER, LINK_BACK, SEEN_FILE)  # reasons to list last in messages
NOT_AN_IMAGE = "no image, or of a kind that Pillow does not know"
MAX_NAMED = 3
NUM_THREADS = 8
FILES_PER_TASK = 64  # per thread task: submitting single files takes as long as reading them
EXIF_ORIENTATION = 0x0112


class SkippedFile(NamedTuple):
    """File or folder that is not used, and the reason."""

    file: str
    reason: str


class _Folder(NamedTuple):
    path: str
    is_link: bool


def ignored_name(name: str) -> str:
    """Return the reason to ignore a file or folder by its name; empty if there is none."""
    if name[0] == ".":
        return HIDDEN
    return SYSTEM if name.lower() in SYSTEM_NAMES else ""


def require_regular(path: str) -> str | SkippedFile:
    """Return the path of a regular file, or the reason to skip it: opening a pipe blocks forever."""
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        return SkippedFile(path, "broken link" if os.path.islink(path) else "no such file")
    except OSError as error:
        return SkippedFile(path, error.strerror or "cannot be read")
    return path if stat.S_ISREG(kind) else SkippedFile(path, "not a regular file")


class ImageWalk:
    """Searches folders for image files in sorted order, without duplicates.

    Hidden files and folders and those of `SYSTEM_NAMES` are ignored. Links are followed, except links to
    folders inside `root` or above it.

    Args:
        root: folder that contains all folders to search.
    """

    def __init__(self, root: str) -> None:
        self._root = os.path.realpath(root)
        self._folders: set[tuple[int, int]] = set()  # device and inode
        self._files: defaultdict[int, set[int]] = defaultdict(set)  # inodes of regular files, by device
        self._linked: set[tuple[int, int]] = set()  # device and inode of link targets

    def find(self, folder: str) -> Iterator[str | SkippedFile]:
        """Yield the image files in a folder and its subfolders, and the skipped files."""
        stack: list[str | SkippedFile | _Folder] = [_Folder(folder, is_link=False)]  # last in, first out
        while stack:
            entry = stack.pop()
            if not isinstance(entry, _Folder):
                yield entry
                continue
            path = entry.path
            try:
                facts = os.stat(path)
                if entry.is_link and self._leads_back(path):
                    yield SkippedFile(path, LINK_BACK)
                elif (facts.st_dev, facts.st_ino) in self._folders:
                    yield SkippedFile(path, SEEN_FOLDER)
                else:
                    self._folders.add((facts.st_dev, facts.st_ino))
                    inside = self._list(path, facts.st_dev)
                    if not inside and _has_image_name(path):
                        yield SkippedFile(path, "empty folder")
                    stack += reversed(inside)
            except OSError as error:
                yield SkippedFile(path, f"unreadable folder ({error.strerror})")

    def _list(self, folder: str, device: int) -> list[str | SkippedFile | _Folder]:
        """Return the entries of a folder, sorted by name."""
        found: dict[str, str | SkippedFile | _Folder] = {}
        others: list[tuple[str, str]] = []  # links to files, pipes, sockets
        with os.scandir(folder) as entries:
            for entry in entries:
                name, path = entry.name, entry.path
                if reason := ignored_name(name):
                    found[name] = SkippedFile(path, reason)
                elif entry.is_file(follow_symlinks=False):
                    self._files[device].add(inode := entry.inode())
                    is_seen = (device, inode) in self._linked
                    found[name] = SkippedFile(path, SEEN_FILE) if is_seen else _accept_image(path)
                elif _is_folder(entry):
                    found[name] = _Folder(path, entry.is_symlink())
                else:
                    others.append((name, path))
        for name, path in sorted(others):  # last, since links may lead to files of the same folder
            found[name] = self._follow(path)
        return [found[name] for name in sorted(found)]

    def _follow(self, path: str) -> str | SkippedFile:
        if isinstance(checked := require_regular(path), SkippedFile):
            return checked
        facts = os.stat(path)
        if facts.st_ino in self._files[facts.st_dev] or (facts.st_dev, facts.st_ino) in self._linked:
            return SkippedFile(path, SEEN_FILE)
        self._linked.add((facts.st_dev, facts.st_ino))
        return _accept_image(path)

    def _leads_back(self, link: str) -> bool:
        """Return True if a link leads into the root, above the root, or above its own folder."""
        target, parent = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
        return _contains(self._root, target) or _contains(target, self._root) or _contains(target, parent)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or a target without read permission
        return False


def _contains(folder: str, path: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def _has_image_name(path: str) -> bool:
    return path[path.rfind(".") :].lower() in EXTENSIONS


def _accept_image(path: str) -> str | SkippedFile:
    """Return the path of a regular file if its extension or its content is that of an image."""
    if _has_image_name(path):
        return path
    from PIL import Image, UnidentifiedImageError

    try:
        if not os.stat(path).st_size:
            return SkippedFile(path, "empty")
        with Image.open(path, formats=_formats()):
            return path
    except Image.DecompressionBombError:  # the decoder reports it
        return path
    except UnidentifiedImageError:
        return SkippedFile(path, NOT_AN_IMAGE)
    except Exception as error:  # plugins raise any exception on damaged files
        return SkippedFile(path, getattr(error, "strerror", None) or f"damaged ({one_line(error)})")


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that Pillow recognizes by the first bytes of a file."""
    from PIL import Image

    Image.init()
    return tuple(
        name for name, (_, accept) in Image.OPEN.items() if accept and name not in UNDECODABLE_FORMATS
    )


def summarize_skipped(skipped: Sequence[SkippedFile], folder: str) -> str:
    """Return names and reasons of a few skipped files, unexpected ones first, and the number of others."""
    ranked = sorted(skipped, key=lambda entry: entry.reason in UNIMPORTANT)
    named = [f"{printable(os.path.relpath(file, folder))} ({reason})" for file, reason in ranked[:MAX_NAMED]]
    more = f", … and {len(ranked) - MAX_NAMED:,} more" if len(ranked) > MAX_NAMED else ""
    return f"{', '.join(named)}{more}"


class Header(NamedTuple):
    """Color and size of an image, read from the header of its file."""

    is_gray: bool
    size: tuple[int, int]  # (H, W) of the upright image


def read_headers(files: Sequence[str]) -> Iterator[Header | Exception]:
    """Yield the header of each file, or its error; threads hide the latency of network drives."""
    from concurrent.futures import ThreadPoolExecutor

    parts = [files[first : first + FILES_PER_TASK] for first in range(0, len(files), FILES_PER_TASK)]
    with warnings.catch_warnings(), ThreadPoolExecutor(NUM_THREADS) as threads:
        warnings.simplefilter("ignore")  # about readable images
        for headers in threads.map(lambda part: list(map(_read_header, part)), parts):
            yield from headers


def _read_header(file: str) -> Header | Exception:
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.format in UNDECODABLE_FORMATS:
                raise OSError(f"{image.format} files cannot be decoded")
            size = image.height, image.width
            # Pillow rotates TIFF files itself, and would read all pixels of a PNG to find EXIF data behind.
            if image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info):
                is_on_its_side = image.getexif().get(EXIF_ORIENTATION, 1) >= 5
                size = size[::-1] if is_on_its_side else size
            return Header(_is_gray(image), size)
    except Exception as error:  # plugins raise any exception
        return error


def _is_gray(image: "PIL.Image.Image") -> bool:
    if image.mode in ("P", "PA") and image.palette is not None:
        layout = image.palette.rawmode or image.palette.mode
        colors = bytes(image.palette.palette)
        if layout.endswith(";L"):  # planar: R…, G…, B…
            third = len(colors) // 3
            return colors[:third] == colors[third : 2 * third] == colors[2 * third : 3 * third]
        width = len(layout)
        return colors[0::width] == colors[1::width] == colors[2::width]
    tiles = getattr(image, "tile", None)
    if image.mode == "RGBA" and tiles and tiles[0][3] == "LA;16B":  # 16-bit gray with alpha
        return True
    return image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")


def damage_error(file: object, error: BaseException) -> DataError:
    """Return an error for a file that cannot be decoded as an image."""
    what = one_line(error)
    return DataError(
        f"data.path: {printable(str(file))} is damaged or not an image ({what}); repair or remove it"
    )


def too_large_error(file: object, what: str) -> DataError:
    """Return an error for an image that exceeds the pixel limit."""
    return DataError(f"data.path: {printable(str(file))} is too large ({what}); shrink or remove it")


def size_error(file: object, size: tuple[int, int], expected: tuple[int, int]) -> InputError:
    """Return an error for an image whose size (H, W) differs from the others, without `data.resize`."""
    got, others = (f"{height}×{width}" for height, width in (size, expected))
    return InputError(
        f"data.resize=null: {printable(str(file))} has {got} pixels, others {others}; set data.resize, "
        f"e.g. data.resize={expected[0]}"
    )
