"""Class folders of a data set: split folders, class names, image files, and a survey of image headers.

Does not import torch: derived values of the configuration are computed from these functions.
"""

import os
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from project.datamodules.storage.image_files import (
    Header,
    ImageWalk,
    SkippedFile,
    damage_error,
    ignored_name,
    read_headers,
    summarize_skipped,
)
from project.errors import DataError, InputError
from project.runtime.text import plural, printable

SPLITS = ("train", "val", "test")
SPLIT_OF_WORD = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "valset", "dev", "devset"), "val"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
}
ALL = "all"  # value of `data.test_size` that makes all images test images
MAX_NAMED = 3
MAX_HEADERS = 2000  # read in 0.2 s; a survey of more files reads a fixed random sample
MTIME_RESOLUTION_NS = 2 * 10**9  # coarsest modification times of any file system


class Layout(NamedTuple):
    """Split folders of a data set."""

    splits: dict[str, Path]  # folder of each split; the root for `train` if it contains the class folders
    unused: tuple[str, ...]  # names of other folders next to a `train` folder


def find_layout(path: Path) -> Layout:
    """Find the split folders by the words of `SPLIT_OF_WORD` in their names, ignoring case.

    A name with further words, such as `images_train` or `cifar_test`, may also name a class. It names a split
    if that split has no folder with a plain name, and if there is a `train` folder, or a folder of another
    split with the same further words. Otherwise the content of the folder decides. If a split folder contains
    a single folder named after the same split, the inner folder is used.

    Raises:
        DataError: two folders name the same split, or a folder may name a split or a class.
    """
    names = _folder_names(path)
    found: dict[str, list[str]] = defaultdict(list)
    decorated: dict[str, list[tuple[str, str]]] = defaultdict(list)  # further words, name
    others: set[str] = set()
    for name in names:
        split, more = _split_of(name)
        if not split:
            others.add(name)
        elif more:
            decorated[split].append((more, name))
        else:
            found[split].append(name)
    has_train = "train" in found
    for split, candidates in decorated.items():
        if split in found:
            continue
        alike = {more for other, those in decorated.items() if other != split for more, _ in those}
        for more, name in candidates:
            if has_train or more in alike or _contains_classes(path, name, split, others):
                found[split].append(name)
    for split, several in found.items():
        if len(several) > 1:
            raise DataError(
                f"data.path={path}: {' and '.join(map(printable, several))} name the same split, {split}; "
                "rename or remove all but one"
            )
    splits = {split: _innermost(path / found[split][0], split) for split in SPLITS if split in found}
    if "train" in splits:
        used = {named for (named,) in found.values()}
        return Layout(splits, tuple(name for name in names if name not in used))
    return Layout({"train": path, **splits} if len(splits) < len(names) else splits, ())


def _contains_classes(path: Path, name: str, split: str, others: set[str]) -> bool:
    """Return True if a folder named after a split contains class folders.

    Raises:
        DataError: the folder may be a split or a class.
    """
    inside = set(_folder_names(path / name))
    if not inside:
        return False
    if not others or (split != "train" and inside <= others):
        return True
    raise DataError(
        f"data.path={path}: {printable(name)} may be the {split} split or a class; rename it to {split}, or "
        "to a name without that word"
    )


def _split_of(name: str) -> tuple[str, str]:
    """Return the split in a folder's name and the other words; empty strings for no or several splits."""
    if (split := SPLIT_OF_WORD.get(name.lower())) is not None:
        return split, ""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W_]+", name)]
    splits = {SPLIT_OF_WORD[word] for word in words if word in SPLIT_OF_WORD}
    more = " ".join(word for word in words if word not in SPLIT_OF_WORD)
    return (splits.pop(), more or name) if len(splits) == 1 else ("", "")


def _innermost(folder: Path, split: str) -> Path:
    """Return a split's folder, or the single folder of the same name in it, as archives often have."""
    names = _folder_names(folder)
    return folder / names[0] if len(names) == 1 and _split_of(names[0])[0] == split else folder


def _folder_names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not ignored_name(entry.name) and entry.is_dir())
    except OSError as error:
        raise DataError(
            f"data.path: {folder} cannot be read ({error.strerror}); check its permissions"
        ) from error


def class_folders(path: Path) -> list[Path]:
    """Return the class folders of the training images, sorted by name.

    Raises:
        InputError: `path` is not a folder.
        DataError: there are fewer than 2 class folders.
    """
    if not os.path.isdir(path):  # noqa: PTH112 - `Path.is_dir` raises for too long names
        raise InputError(
            f"data.path={path}: no such folder; give a folder that contains a folder for each class"
        )
    splits = find_layout(path).splits
    folder = splits.get("train", path)
    found = _subfolders(path, folder)
    if len(found) < 2:
        others = [
            f"; {printable(other.name)} is the {name} split"
            for name, other in splits.items()
            if name != "train"
        ]
        raise DataError(
            f"data.path={path}: {plural(len(found), 'class folder')} in {folder}, at least 2 are needed "
            f"(train/<class>/*.jpg or <class>/*.jpg{''.join(others)})"
        )
    return found


def _subfolders(path: Path, folder: Path) -> list[Path]:
    """Return the class folders in a split folder, sorted by name."""
    splits = set(find_layout(path).splits.values()) if folder == path else set()
    return [folder / name for name in _folder_names(folder) if folder / name not in splits]


def _class_name(folder: Path) -> str:
    """Return the class name of a folder, in every locale the same, with unprintable characters escaped."""
    return printable(os.fsencode(folder.name).decode(errors="surrogateescape"))


def class_names(path: Path) -> list[str]:
    """Return the names of the training classes in the order of the labels.

    Raises:
        DataError: two folders have the same printable name, or as in `class_folders`.
    """
    names = [_class_name(folder) for folder in class_folders(path)]
    twice, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(
            f"data.path={path}: two class folders have the same printable name, {twice}; rename one"
        )
    return names


class SplitFiles(NamedTuple):
    """Image files of a split, sorted by class."""

    files: list[str]
    labels: list[int]
    skipped: list[SkippedFile]  # other files and folders


def find_images(
    path: Path, folder: Path, names: Sequence[str], *, are_configured: bool = False
) -> SplitFiles:
    """Find and label the images in a split folder.

    Args:
        path: folder of the data set.
        folder: folder of the split.
        names: class names in the order of the labels.
        are_configured: `names` are configured, rather than those of the training folders (default False).

    Raises:
        DataError: a class is not in `names` or has no training images, or the split has no images.
    """
    classes = _subfolders(path, folder)
    label_of = {name: label for label, name in enumerate(names)}
    if unknown := [one for one in classes if _class_name(one) not in label_of]:
        few = printable(", ".join(map(str, unknown[:MAX_NAMED])) + (", …" if unknown[MAX_NAMED:] else ""))
        if are_configured:
            verb = "are" if unknown[1:] else "is"
            raise DataError(
                f"data.path={path}: {few} {verb} none of the classes {', '.join(names)}; rename or remove"
                f" {'them' if unknown[1:] else 'it'}"
            )
        raise DataError(f"data.path={path}: class {few} has no training images; add some, or remove it")
    files: list[str] = []
    labels: list[int] = []
    skipped = list(_outside_class_folders(folder))
    is_training = folder == find_layout(path).splits.get("train")
    for one, (images, others) in zip(classes, _walk(folder, classes), strict=True):
        if not images and is_training:
            why = f" (skipped: {summarize_skipped(others, str(one))})" if others else ""
            raise DataError(
                f"data.path={path}: no image files in class folder {printable(str(one))}{why}; add some, or "
                "remove it"
            )
        files += images
        labels += [label_of[_class_name(one)]] * len(images)
        skipped += others
    if not files:
        why = f" (skipped: {summarize_skipped(skipped, str(folder))})" if skipped else ""
        raise DataError(
            f"data.path={path}: no image files in {folder}/<class>{why}; check whether they were moved, or "
            "give another folder"
        )
    return SplitFiles(files, labels, skipped)


def training_files(path: Path) -> list[str]:
    """Return the image files in the training class folders.

    Raises:
        DataError: there are none, or as in `class_folders`.
    """
    folders = class_folders(path)
    if files := [file for images, _ in _walk(folders[0].parent, folders) for file in images]:
        return files
    raise DataError(f"data.path={path}: no image files in its class folders; check whether they were moved")


ClassFiles = tuple[list[str], list[SkippedFile]]


def _walk(root: Path, folders: Sequence[Path]) -> tuple[ClassFiles, ...]:
    """Return the images and the skipped entries of each folder; cached until a folder changes."""
    return _walk_once(str(root), tuple(map(_state, folders)), Path.cwd())


@cache
def _walk_once(root: str, folders: tuple[tuple[str, int], ...], _here: Path) -> tuple[ClassFiles, ...]:
    walk = ImageWalk(root)
    found: list[ClassFiles] = []
    for folder, _ in folders:
        entries = list(walk.find(folder))
        images = [entry for entry in entries if isinstance(entry, str)]
        found.append((images, [entry for entry in entries if not isinstance(entry, str)]))
    return tuple(found)


def _state(folder: Path) -> tuple[str, int]:
    changed, now = folder.stat().st_mtime_ns, time.time_ns()
    return str(folder), changed if now - changed > MTIME_RESOLUTION_NS else now


def _outside_class_folders(folder: Path) -> Iterator[SkippedFile]:
    """Yield the entries of a split folder that are not class folders."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if reason := ignored_name(entry.name):
                yield SkippedFile(entry.path, reason)
            elif not entry.is_dir():
                yield SkippedFile(entry.path, "not in a class folder")


class Survey(NamedTuple):
    """Colors and sizes of the training images in a folder."""

    gray: int  # number of gray images
    color: int  # number of color images
    sizes: dict[tuple[int, int], str]  # (H, W) of upright images, most frequent first, and a file of each


def survey(path: str | Path) -> Survey:
    """Read the headers of the training images in a folder, of at most `MAX_HEADERS` files.

    Raises:
        DataError: no header is readable, or as in `training_files`.
    """
    return _survey(Path(path), tuple(map(_state, class_folders(Path(path)))), Path.cwd())


@cache
def _survey(path: Path, _folders: tuple[tuple[str, int], ...], _here: Path) -> Survey:
    return survey_files(training_files(path))


def survey_files(files: list[str]) -> Survey:
    """Read the headers of image files, of at most `MAX_HEADERS`.

    Raises:
        DataError: no header is readable.
    """
    if len(files) > MAX_HEADERS:
        rows = random.Random(0).sample(range(len(files)), MAX_HEADERS)  # noqa: S311
        files = [files[row] for row in sorted(rows)]
    headers = list(read_headers(files))
    read = [(file, header) for file, header in zip(files, headers, strict=True) if isinstance(header, Header)]
    if not read:
        raise damage_error(files[0], next(error for error in headers if isinstance(error, Exception)))
    file_of = {size: file for file, (_, size) in reversed(read)}
    common = Counter(size for _, (_, size) in read).most_common()
    gray = sum(is_gray for _, (is_gray, _) in read)
    return Survey(gray, len(read) - gray, {size: file_of[size] for size, _ in common})
