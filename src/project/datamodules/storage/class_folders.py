"""Where the images of a folder data set lie. Needs no torch: the configuration is made from it."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from project.datamodules.storage.image_files import ImageWalk, PassedOver, not_listed, sum_up
from project.errors import DataError, InputError
from project.runtime.text import shown

SPLITS = ("train", "val", "test")
SPLIT_OF_WORD = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "valset", "dev", "devset"), "val"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
}
ALL = "all"
"""As `data.test_size`: all images are test images."""
MOST_NAMED = 3


class Layout(NamedTuple):
    """Which folders below a data set's folder hold its splits.

    Args:
        splits: folder of each split that has one; of `train`, the data set's folder itself if other folders
            than those of splits, the classes, lie in it.
        unused: names of other folders beside a folder `train`.
    """

    splits: dict[str, Path]
    unused: tuple[str, ...]


class SplitFiles(NamedTuple):
    """The images of a split.

    Args:
        files: class by class.
        labels: one for each file.
        passed_over: files and folders beside them.
    """

    files: list[str]
    labels: list[int]
    passed_over: list[PassedOver]


def find_layout(path: Path) -> Layout:
    """Find the folders of the splits by their names, in any case: those of `SPLIT_OF_WORD`.

    A name with further words, as `images_train` or `cifar_test`, may be a class's. It is a split's, where the
    split has no plain name, beside a folder `train`, or beside another split's with the same words. Otherwise
    what is in it decides. The only folder in a split's takes its place, if its name is that split's too.

    Raises:
        DataError: two folders name the same split, or one names a split or a class.
    """
    names = _folder_names(path)
    found: dict[str, list[str]] = defaultdict(list)
    decorated: dict[str, list[tuple[str, str]]] = defaultdict(list)  # further words and names
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
            if has_train or more in alike or _holds_classes(path, name, split, others):
                found[split].append(name)
    for split, several in found.items():
        if len(several) > 1:
            raise DataError(
                f"data.path={path}: {' and '.join(map(shown, several))} name the same split, {split}; keep "
                "one, or rename the others"
            )
    splits = {split: _innermost(path / found[split][0], split) for split in SPLITS if split in found}
    if "train" in splits:
        used = {named for (named,) in found.values()}
        return Layout(splits, tuple(name for name in names if name not in used))
    return Layout({"train": path, **splits} if len(splits) < len(names) else splits, ())


def _holds_classes(path: Path, name: str, split: str, others: set[str]) -> bool:
    """Return whether a folder named like a split holds class folders; an ambiguous one is refused."""
    inside = set(_folder_names(path / name))
    if not inside:
        return False
    if not others or (split != "train" and inside <= others):
        return True
    raise DataError(
        f"data.path={path}: {shown(name)} may hold the {split} split or be a class; rename it to {split}, or "
        f"to a name without that word"
    )


def _split_of(name: str) -> tuple[str, str]:
    """The split that a folder's name names, empty if none or several, and its further words."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W_]+", name)]
    if (split := SPLIT_OF_WORD.get(name.lower())) is not None:
        return split, ""
    splits = {SPLIT_OF_WORD[word] for word in words if word in SPLIT_OF_WORD}
    more = " ".join(word for word in words if word not in SPLIT_OF_WORD)
    return (splits.pop(), more or name) if len(splits) == 1 else ("", "")


def _innermost(folder: Path, split: str) -> Path:
    """A split's folder, or the one in it that archives put there once more."""
    names = _folder_names(folder)
    return folder / names[0] if len(names) == 1 and _split_of(names[0])[0] == split else folder


def _folder_names(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted, without hidden ones and those of the system."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not not_listed(entry.name) and entry.is_dir())
    except OSError as error:
        raise DataError(
            f"data.path: {folder} cannot be read ({error.strerror}); see who may read it"
        ) from error


def class_folders(path: Path) -> list[Path]:
    """Class folders of the training images, sorted by name.

    Raises:
        InputError: `path` is no folder.
        DataError: it holds fewer than two class folders.
    """
    if not os.path.isdir(path):  # noqa: PTH112 - `Path.is_dir` raises where a name is too long
        raise InputError(f"data.path={path}: no such folder; give one that holds a folder for each class")
    splits = find_layout(path).splits
    folder = splits.get("train", path)
    found = subfolders(path, folder)
    if len(found) < 2:
        beside = [
            f"{shown(other.name)} is the {split} split" for split, other in splits.items() if split != "train"
        ]
        raise DataError(
            f"data.path={path}: {len(found)} class folders in {folder}, at least 2 are needed "
            f"(train/<class>/*.jpg or <class>/*.jpg{'; ' if beside else ''}{', '.join(beside)})"
        )
    return found


def subfolders(path: Path, folder: Path) -> list[Path]:
    """Class folders in the folder of a split, sorted by name.

    Args:
        path: of the data set, whose folders of splits are no classes.
        folder: of the split.
    """
    taken = set(find_layout(path).splits.values()) if folder == path else set()
    return [folder / name for name in _folder_names(folder) if folder / name not in taken]


def class_name(folder: Path) -> str:
    """Name of the class in a folder: the same whatever the locale, and shown everywhere as it is, for what is
    no printable character is spelt out.
    """
    return shown(os.fsencode(folder.name).decode(errors="surrogateescape"))


def class_names(path: Path) -> list[str]:
    """Names of the training images' classes, in the order of the labels.

    Raises:
        InputError: see `class_folders`.
    """
    names = [class_name(folder) for folder in class_folders(path)]
    twice, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"data.path={path}: two class folders are shown as {twice}; rename one")
    return names


def find_images(path: Path, folder: Path, names: Sequence[str], *, given: bool = False) -> SplitFiles:
    """Find the images of a split, and label them.

    Args:
        path: of the data set.
        folder: of the split.
        names: of the classes, in the order of the labels.
        given: whether `names` are configured; otherwise those of the training images.

    Raises:
        DataError: a class is none of `names`, or has no training images; or there are no images at all.
    """
    classes = subfolders(path, folder)
    label_of = {name: label for label, name in enumerate(names)}
    if unknown := [one for one in classes if class_name(one) not in label_of]:
        few = shown(", ".join(map(str, unknown[:MOST_NAMED])) + (", …" if unknown[MOST_NAMED:] else ""))
        if given:
            raise DataError(
                f"data.path={path}: {few} is none of the classes {', '.join(names)}; rename or remove it"
            )
        raise DataError(f"data.path={path}: class {few} has no training images; add some, or remove it")
    walk = ImageWalk(str(folder))
    files: list[str] = []
    labels: list[int] = []
    passed_over = list(_beside_classes(folder))
    for one in classes:
        found = list(walk.find(str(one)))
        images = [entry for entry in found if isinstance(entry, str)]
        others = [entry for entry in found if isinstance(entry, PassedOver)]
        if not images and folder == find_layout(path).splits.get("train"):
            why = f" (passed over: {sum_up(others, str(one))})" if others else ""
            raise DataError(
                f"data.path={path}: no image files in class folder {shown(str(one))}{why}; add some, or "
                "remove it"
            )
        files += images
        labels += [label_of[class_name(one)]] * len(images)
        passed_over += others
    if not files:
        why = f" (passed over: {sum_up(passed_over, str(folder))})" if passed_over else ""
        raise DataError(
            f"data.path={path}: no image files in {folder}/<class>{why}; see whether they were moved, or "
            "give another folder"
        )
    return SplitFiles(files, labels, passed_over)


def _beside_classes(folder: Path) -> Iterator[PassedOver]:
    """Yield the entries of a split's folder that are no class folders."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if reason := not_listed(entry.name):
                yield PassedOver(entry.path, reason)
            elif not entry.is_dir():
                yield PassedOver(entry.path, "in no class folder")


def first_image(path: Path) -> Path:
    """The first training image.

    Raises:
        DataError: there is none.
    """
    walk = ImageWalk(str(path))
    for folder in class_folders(path):
        for entry in walk.find(str(folder)):
            if isinstance(entry, str):
                return Path(entry)
    raise DataError(f"data.path={path}: no image files in its class folders; see whether they were moved")
