"""Implementation of `scripts/data.py`: read a data set once, and write the page and its CSV files."""

import csv
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from project.config.instantiate import build
from project.datamodules.base import Split, SupervisedDataModule
from project.datamodules.image_base import ImageDataModule
from project.errors import InputError
from project.reporting.dataset import page
from project.reporting.dataset.duplicates import Pair, find_duplicates
from project.reporting.dataset.label_issues import LabelCheck, check_labels, find_runs
from project.reporting.dataset.options import PAGE, Options
from project.reporting.dataset.scan import Place, Scan, scan_images
from project.reporting.dataset.tiles import Album
from project.reporting.html.command import PAGE as EARLIER_PAGE
from project.reporting.html.command import render, write_page
from project.reporting.html.tables import format_time
from project.runs.provenance import now
from project.runtime.csv_files import escape_all
from project.runtime.output_files import output_file, refuse_foreign_file
from project.runtime.process import silence_libraries
from project.runtime.text import printable

Config = dict[str, Any]


def write_report(options: Options, folder: Path, config: Config | None, run: Path | None) -> Path:
    """Write the page and the CSV files about a data set.

    Args:
        options: options of the command.
        folder: folder of the files.
        config: configuration of the data set; None: that of the run.
        run: folder of a run or sweep whose predictions check the labels [none].

    Returns:
        The page.

    Raises:
        InputError: the data set or the run cannot be read, or the files cannot be written.
    """
    silence_libraries()
    warnings.filterwarnings("ignore", module="PIL")  # about images that are decoded nevertheless
    file = folder / PAGE
    refuse_foreign_file(f"output={folder}", file, EARLIER_PAGE)
    check = None
    if run is not None:
        overrides = [*options.data, *options.paths]
        check = check_labels(find_runs(run), overrides, options.accelerator)
        config = check.config
    assert config is not None
    data, configured = open_data(config)
    splits: list[Split] = [split for split in page.SPLITS if data.count(split)]
    rows = class_rows(data, splits)
    tables: dict[str, tuple[Sequence[str], Iterator[Sequence[Any]]]] = {}
    if data.target_type != "real":
        tables["classes.csv"] = ("split", "class", "count"), iter(rows)
    sections, remark = [page.target_section(data, splits)], ""
    summary = Summary(data, splits)
    if isinstance(data, ImageDataModule):
        scan = scan_images(data, splits, near=options.near)
        found = find_duplicates(scan.digests, scan.hashes, scan.thumbnails)
        pairs = found.pairs
        album = Album(data)
        sections += [
            page.image_section(data, scan, configured),
            *filter(None, [page.sample_section(album, scan)]),
            page.duplicate_section(album, scan, found, near=options.near),
        ]
        tables["duplicates.csv"] = PAIR_COLUMNS, pair_rows(album, scan, pairs)
        if check is not None:
            sections.insert(1, page.label_section(album, check))
            tables["labels.csv"] = LABEL_COLUMNS, label_rows(album, check)
        if unreadable := page.unreadable_section(album, scan.unreadable):
            sections.append(unreadable)
        tables["unreadable.csv"] = ("file", "split", "reason"), unreadable_rows(album, scan)
        summary.add_images(scan, pairs, check)
        remark = page.describe_similarity(found)
    else:
        names = getattr(data, "feature_columns", [str(index) for index in range(data.input_shape[0])])
        sections += filter(None, [page.feature_section(data, names)])
    for name, (columns, lines) in tables.items():
        write_csv(folder / name, columns, lines)
    content = {
        "title": f"Data: {data.name}",
        "kind": "Data",
        "states": [],
        "heading": data.name,
        "folder": printable(data.source),
        "written": format_time(now()),
        "lead": summary.lead,
        "provenance_line": "",
        "cards": summary.cards,
        "sections": sections,
    }
    write_page(file, render(content))
    print(summary.lead)
    if remark:
        print(remark)
    print(f"{folder}: {', '.join([PAGE, *tables])}")
    return file


def open_data(config: Config) -> tuple[SupervisedDataModule, tuple[Any, Any]]:
    """Build a data module and set up all its splits; image files are streamed, not held in memory.

    Args:
        config: configuration of the data set, resolved to plain values.

    Returns:
        The data module, and mean and std that are configured for its images.

    Raises:
        InputError: its class is no `SupervisedDataModule`, or the data cannot be read.
    """
    changes = {"memory_budget_mb": 0, "folds": None, "sampler": None}
    config = config | {key: value for key, value in changes.items() if key in config}
    data = build({"data": config}, "data")
    if not isinstance(data, SupervisedDataModule):
        raise InputError(
            f"data._target_={config['_target_']}: has no classes or values per image (expected a "
            "SupervisedDataModule of this package or a class derived from it, got a plain "
            "LightningDataModule); choose other data"
        )
    configured = data.mean, data.std
    if isinstance(data, ImageDataModule):  # measured with the duplicates, and without damaged images
        channels = data.input_shape[0]
        data.mean, data.std = data.mean or [0.0] * channels, data.std or [1.0] * channels
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data, configured


class Summary:
    """Key numbers of a data set.

    Attributes:
        cards: label, value and note of each number.
        lead: the numbers as a sentence.
    """

    def __init__(self, data: SupervisedDataModule, splits: Sequence[Split]) -> None:
        self._data = data
        noun = "image" if isinstance(data, ImageDataModule) else "row"
        counts = {split: data.count(split) for split in splits}
        parts = ", ".join(f"{count:,} {page.TITLES[split]}" for split, count in counts.items())
        kinds = {"class": "classes", "multilabel": "labels", "real": "values"}
        self.cards = [(f"{noun}s", f"{sum(counts.values()):,}", parts)]
        self.lead = f"{page.describe(sum(counts.values()), noun)} ({parts})"
        if data.target_type == "class":
            sizes = data.targets("train").bincount(minlength=data.num_classes)
            note = f"{int(sizes.min()):,} to {int(sizes.max()):,} training {noun}s each"
            self.cards.append(("classes", str(data.num_classes), note))
        else:
            self.cards.append((kinds[data.target_type], str(data.num_classes), f"of each {noun}"))
        names = kinds[data.target_type] if data.num_classes > 1 else kinds[data.target_type].rstrip("s")
        self.lead += f" of {data.num_classes:,} {names}."

    def add_images(self, scan: Scan, pairs: Sequence[Pair], check: LabelCheck | None) -> None:
        """Add the numbers of duplicates, unreadable files and suspicious labels."""
        kinds = Counter("exact" if pair.is_exact else "near" for pair in pairs)
        places = [(scan.places[pair.first], scan.places[pair.second]) for pair in pairs]
        across = sum(one.split != other.split for one, other in places)
        different = sum(page.labels_differ(self._data, one, other) for one, other in places)
        self.cards += [
            ("exact copies", f"{kinds['exact']:,}", ""),
            ("near duplicates", f"{kinds['near']:,}", ""),
            ("pairs across splits", f"{across:,}", f"of {len(pairs):,}"),
            ("pairs with different labels", f"{different:,}", f"of {len(pairs):,}"),
            ("unreadable files", f"{len(scan.unreadable):,}", ""),
        ]
        self.lead += (
            f" {page.describe(len(pairs), 'pair')} of duplicates ({kinds['exact']:,} exact, "
            f"{kinds['near']:,} near), {across:,} across splits, {different:,} with different labels."
        )
        if scan.unreadable:
            self.lead += f" {page.describe(len(scan.unreadable), 'file')} cannot be read."
        if check is not None:
            self.cards.append(("suspicious labels", f"{check.num_issues:,}", f"of {len(check.suspects):,}"))
            self.lead += (
                f" {page.describe(check.num_issues, 'label')} of {len(check.suspects):,} "
                f"{'is' if check.num_issues == 1 else 'are'} likely wrong."
            )


# CSV files

PAIR_COLUMNS = (
    *("kind", "similarity", "distance", "split", "index", "file", "label"),
    *("other_split", "other_index", "other_file", "other_label", "labels_differ"),
)
LABEL_COLUMNS = ("split", "index", "file", "label", "suggested", "score", "is_issue")


def class_rows(data: SupervisedDataModule, splits: Sequence[Split]) -> list[tuple[str, str, int]]:
    """Return split, class or label, and number of inputs."""
    if data.target_type == "real":
        return []
    counts = page.class_counts(data, splits)
    return [
        (split, str(name), int(counts[split][label]))
        for split in splits
        for label, name in enumerate(data.class_names)
    ]


def pair_rows(album: Album, scan: Scan, pairs: Sequence[Pair]) -> Iterator[Sequence[Any]]:
    """Yield the rows of duplicates.csv."""
    for pair in pairs:
        places = scan.places[pair.first], scan.places[pair.second]
        kind = "exact" if pair.is_exact else "near"
        ends = [value for place in places for value in (*_place(album, place), album.label(place))]
        differs = page.labels_differ(album.data, *places)
        yield kind, f"{pair.similarity:.4f}", pair.distance, *ends, str(differs).lower()


def label_rows(album: Album, check: LabelCheck) -> Iterator[Sequence[Any]]:
    """Yield the rows of labels.csv, most suspicious first."""
    names = list(map(str, album.data.class_names))
    for one in check.suspects:
        labels = names[one.given], names[one.suggested], f"{one.score:.6f}", str(one.is_issue).lower()
        yield *_place(album, one.place), *labels


def unreadable_rows(album: Album, scan: Scan) -> Iterator[Sequence[Any]]:
    """Yield the rows of unreadable.csv."""
    for place, reason in scan.unreadable.items():
        yield album.file(place), place.split, reason


def _place(album: Album, place: Place) -> tuple[str, int, str]:
    return place.split, place.row, album.file(place)


def write_csv(file: Path, columns: Sequence[str], rows: Iterator[Sequence[Any]]) -> None:
    """Write a table atomically.

    Raises:
        InputError: the file cannot be written.
    """
    with (
        output_file(f"output={file}", file) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(map(escape_all, rows))
