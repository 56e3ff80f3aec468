"""Image files in a folder: one walk for training and prediction. Needs no torch.

Paths are texts: of a million files, making `Path`s takes longer than finding them.
"""
# ruff: noqa: PTH114, PTH116

import os
import stat
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

from project.errors import DataError, InputError, one_line
from project.runtime.text import shown

EXTENSIONS = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".avif", ".jp2", ".bmp", ".tif"),
        *(".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico"),
    }
)
"""Of files that are taken for images unopened; of any other file the first bytes decide."""
NO_PIXELS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow knows, and cannot decode by itself."""
SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "__pycache__", "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini", "recycler"),
        *("$recycle.bin", "system volume information", "@eadir", "@recycle", "#recycle", "#snapshot"),
    }
)
"""Files and folders that systems and network drives add, in lower case."""
HIDDEN, SYSTEM = "hidden", "of the system"
SEEN, BACK, SAME = "a folder seen already", "a link back to a folder that is walked", "a file seen already"
UNIMPORTANT = (HIDDEN, SYSTEM, SEEN, BACK, SAME)
"""Reasons for which nobody misses a file."""
NO_IMAGE = "no image, or of a kind that Pillow does not know"
MOST_NAMED = 3


class PassedOver(NamedTuple):
    """A file or folder that is not taken, and why."""

    file: str
    reason: str


class Folder(NamedTuple):
    """A folder that a walk comes to."""

    path: str
    is_link: bool


Entry = str | PassedOver | Folder
"""Entry of a folder; a text is the path of an image."""


def not_listed(name: str) -> str:
    """The reason why nobody means a file or folder of this name; empty if there is none."""
    if name[0] == ".":
        return HIDDEN
    return SYSTEM if name.lower() in SYSTEM_NAMES else ""


def judge(path: str) -> str | PassedOver:
    """The path, unless it is known to be no file before it is opened: opening a pipe waits for ever."""
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        return PassedOver(path, "a link to nothing" if os.path.islink(path) else "no such file")
    except OSError as error:
        return PassedOver(path, error.strerror or "cannot be read")
    return path if stat.S_ISREG(kind) else PassedOver(path, "no regular file")


class ImageWalk:
    """Walks folders, in the order of their paths; takes each folder and each file once.

    Hidden files and folders, and those of `SYSTEM_NAMES`, are passed over. Links are followed, but for those
    that lead back into a folder that is walked anyway, or above it.

    Args:
        root: all folders that are walked lie in it.
    """

    def __init__(self, root: str) -> None:
        self._root = os.path.realpath(root)
        self._folders: set[tuple[int, int]] = set()  # device and inode
        self._listed: list[tuple[int, list[int]]] = []  # device, and inodes of the files of a folder
        self._files: set[tuple[int, int]] = set()  # device and inode of those that links were compared with
        self._linked: set[tuple[int, int]] = set()  # of those that a link led to

    def find(self, folder: str) -> Iterator[str | PassedOver]:
        """Yield image files in a folder and below it, however deep, and what is passed over."""
        waiting: list[Entry] = [Folder(folder, is_link=False)]  # the next one last
        while waiting:
            entry = waiting.pop()
            if not isinstance(entry, Folder):
                yield entry
                continue
            path = entry.path
            if entry.is_link and self._leads_back(path):
                yield PassedOver(path, BACK)
                continue
            try:
                facts = os.stat(path)
                if (key := (facts.st_dev, facts.st_ino)) in self._folders:
                    yield PassedOver(path, SEEN)
                    continue
                self._folders.add(key)
                inside = self._inside(path, facts.st_dev)
            except OSError as error:
                yield PassedOver(path, f"a folder that cannot be read ({error.strerror})")
                continue
            if not inside and has_image_ending(path):
                yield PassedOver(path, "an empty folder")
            waiting += reversed(inside)

    def _inside(self, folder: str, device: int) -> list[Entry]:
        """Return the entries of a folder, sorted by name."""
        found: dict[str, Entry] = {}
        inodes: list[int] = []
        others: list[tuple[str, str]] = []  # links to files, pipes and the like
        with os.scandir(folder) as entries:
            for entry in entries:
                name, path = entry.name, entry.path
                if reason := not_listed(name):
                    found[name] = PassedOver(path, reason)
                elif entry.is_file(follow_symlinks=False):
                    inodes.append(inode := entry.inode())
                    if self._linked and (device, inode) in self._linked:
                        found[name] = PassedOver(path, SAME)
                    else:
                        found[name] = path if has_image_ending(name) else _by_content(path)
                elif _is_folder(entry):
                    found[name] = Folder(path, entry.is_symlink())
                else:
                    others.append((name, path))
        self._listed.append((device, inodes))
        for name, path in sorted(others):
            found[name] = self._follow(path)
        return [found[name] for name in sorted(found)]

    def _follow(self, path: str) -> str | PassedOver:
        """Judge what is no plain file: a link to one, or a pipe."""
        if isinstance(judged := judge(path), PassedOver):
            return judged
        while self._listed:  # not unless there are links: a set of a million files takes a second
            device, inodes = self._listed.pop()
            self._files.update((device, inode) for inode in inodes)
        facts = os.stat(path)
        if (key := (facts.st_dev, facts.st_ino)) in self._files:
            return PassedOver(path, SAME)
        self._files.add(key)
        self._linked.add(key)
        return path if has_image_ending(path) else _by_content(path)

    def _leads_back(self, link: str) -> bool:
        """Return whether a link leads into the root, or above the root or the folder that it lies in."""
        target, parent = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
        return _holds(self._root, target) or _holds(target, self._root) or _holds(target, parent)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or where nobody may look
        return False


def _holds(folder: str, path: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def has_image_ending(name: str) -> bool:
    """Return whether a file is taken for an image by its name."""
    return name[name.rfind(".") :].lower() in EXTENSIONS


def _by_content(path: str) -> str | PassedOver:
    """A regular file's path, unless its content says that it is no image."""
    from PIL import Image, UnidentifiedImageError

    try:
        if not os.stat(path).st_size:
            return PassedOver(path, "empty")
        with Image.open(path, formats=_formats()):
            return path
    except Image.DecompressionBombError:  # for the decoder to tell
        return path
    except UnidentifiedImageError:
        return PassedOver(path, NO_IMAGE)
    except Exception as error:  # plugins raise anything at a damaged file
        return PassedOver(path, getattr(error, "strerror", None) or f"damaged ({one_line(error)})")


@cache
def _formats() -> tuple[str, ...]:
    """Formats that a file's first bytes tell of."""
    from PIL import Image

    Image.init()
    return tuple(name for name, (_, accept) in Image.OPEN.items() if accept and name not in NO_PIXELS)


def damage_of(file: str | os.PathLike[str], error: BaseException) -> DataError:
    """Return the error for a file that cannot be read as an image."""
    what = one_line(error)
    return DataError(
        f"data.path: {shown(os.fspath(file))} is damaged or no image ({what}); mend or remove it"
    )


def excess_of(file: str | os.PathLike[str], what: str) -> DataError:
    """Return the error for an image of more pixels than are read."""
    return DataError(f"data.path: {shown(os.fspath(file))} is too large ({what}); shrink or remove it")


def mismatch_of(file: str | os.PathLike[str], size: tuple[int, int], expected: tuple[int, int]) -> InputError:
    """Return the error for an image of another size (H, W) than the others, which must not be scaled."""
    got, others = (f"{height}×{width}" for height, width in (size, expected))
    return InputError(
        f"data.resize=null: {shown(os.fspath(file))} has {got} pixels, others {others}; set data.resize, "
        f"e.g. data.resize={expected[0]}"
    )


def sum_up(passed_over: Sequence[PassedOver], folder: str) -> str:
    """Name a few of the files that were passed over, those first that somebody may miss, and their number."""
    ranked = sorted(passed_over, key=lambda entry: entry.reason in UNIMPORTANT)
    named = [f"{shown(os.path.relpath(file, folder))} ({reason})" for file, reason in ranked[:MOST_NAMED]]
    more = f", … and {len(ranked) - MOST_NAMED:,} more" if len(ranked) > MOST_NAMED else ""
    return f"{', '.join(named)}{more}"
