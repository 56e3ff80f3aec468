"""Content of the page about a data set."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from markupsafe import Markup

from project.datamodules.base import Split, SupervisedDataModule
from project.datamodules.image_base import ImageDataModule
from project.figures.bars import MAX_NAME, draw_histogram, draw_stacked_bars
from project.figures.charts import Line, figure_style, make_axes, to_svg
from project.reporting.dataset.duplicates import SIMILARITIES, Found
from project.reporting.dataset.label_issues import LabelCheck
from project.reporting.dataset.scan import Place, Scan
from project.reporting.dataset.tiles import Album, Tile
from project.reporting.html.charts import HEIGHT, WIDE, WIDTH, Chart
from project.reporting.html.run_page import Section
from project.reporting.html.tables import Cell, Table, format_metric, number_cell
from project.runtime.text import plural, shorten

SPLITS: Sequence[Split] = ("train", "val", "test")
TITLES = {"train": "training", "val": "validation", "test": "test"}
MAX_BARS, MAX_ROWS, MAX_SIZES = 40, 200, 12
"""Most classes of the chart and of the table, and most sizes."""
MAX_CLASSES, PER_CLASS = 50, 12
"""Most classes with samples, and samples of each."""
MAX_PAIRS, MAX_SUSPECTS, MAX_NAMED, MAX_HISTOGRAMS = 60, 60, 100, 12
BAR_HEIGHT = 20
"""Points a bar."""
CHARACTER = 7
"""Points a character of a class name."""


class ClassSamples(NamedTuple):
    """Images of one class."""

    name: str
    note: str
    tiles: list[Tile]


class PairTile(NamedTuple):
    """Two images that are equal, or nearly."""

    first: Tile
    second: Tile
    note: str
    is_label_different: bool


class SuspectTile(NamedTuple):
    """Image whose label is likely wrong."""

    tile: Tile
    suggested: str
    note: str


class Duplicates(NamedTuple):
    """Pairs of equal and nearly equal images.

    Args:
        table: number of pairs by splits.
        pairs: pairs to show.
        note: sentence about what is shown.
    """

    table: Table | None
    pairs: list[PairTile]
    note: str


def describe(count: int, noun: str) -> str:
    """Return a count with its noun: `1 image`, `2,000 images`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def labels_differ(data: SupervisedDataModule, first: Place, second: Place) -> bool:
    """Return True if two images have different targets."""
    one, other = (data.subset(place.split).images.labels[place.row] for place in (first, second))
    return not torch.equal(one, other)


# Splits, classes and targets


def target_section(data: SupervisedDataModule, splits: Sequence[Split]) -> Section:
    """Return the section of classes, labels or values by split."""
    if data.target_type == "real":
        return Section("Targets", "charts_and_tables", _value_content(data, splits))
    counts = class_counts(data, splits)
    names = list(map(str, data.class_names))
    totals = np.sum([counts[split] for split in splits], axis=0)
    order = np.argsort(-totals, kind="stable") if len(names) > MAX_BARS else np.arange(len(names))
    shown = order if len(order) <= MAX_BARS else np.r_[order[: MAX_BARS // 2], order[-MAX_BARS // 2 :]]
    note = (
        f"Drawn: the {MAX_BARS // 2} largest and the {MAX_BARS // 2} smallest of {len(names):,} classes."
        if len(shown) < len(order)
        else ""
    )
    is_class = data.target_type == "class"
    noun = "inputs" if not isinstance(data, ImageDataModule) else "images"
    title = f"{noun.capitalize()} per {'class' if is_class else 'label'}"
    legend = [Line(TITLES[split], [], [], number) for number, split in enumerate(splits)]
    with figure_style(font__size=12):
        longest = max(len(shorten(names[place], MAX_NAME)) for place in shown)
        axes = make_axes(WIDE, 60 + BAR_HEIGHT * len(shown), (20 + CHARACTER * longest, 24, 6, 44))
        groups = [counts[split][shown] for split in splits]
        draw_stacked_bars(axes, [names[place] for place in shown], groups, x_label=noun)
        text = "; ".join(f"{names[place]} {totals[place]:,}" for place in shown)
        svg = Markup(to_svg(axes, "classes", f"{title}: {text}"))  # noqa: S704 (escaped there)
    rows = [
        [Cell(names[place]), *(_count(counts[split][place]) for split in splits), _count(totals[place])]
        for place in order[:MAX_ROWS]
    ]
    if is_class:
        rows = [
            [*row, Cell(f"{share:.1%}", share)]
            for row, share in zip(
                rows, (totals / max(1, totals.sum()))[order[:MAX_ROWS]].tolist(), strict=True
            )
        ]
    head = ["class" if is_class else "label", *(TITLES[split] for split in splits), "all"]
    head += ["share"] if is_class else []
    caption = title + (f": the largest {MAX_ROWS} of {len(order):,}" if len(order) > MAX_ROWS else "")
    content = {
        "charts": [Chart(title, svg, legend, note, is_wide=True)],
        "tables": [Table(caption, head, rows)],
    }
    return Section("Classes" if is_class else "Labels", "charts_and_tables", content)


def class_counts(data: SupervisedDataModule, splits: Sequence[Split]) -> dict[str, Any]:
    """Return the number of inputs of each class, or with each label, by split."""
    if data.target_type == "class":
        return {split: data.targets(split).bincount(minlength=data.num_classes).numpy() for split in splits}
    return {split: data.targets(split).sum(0).long().numpy() for split in splits}


def _value_content(data: SupervisedDataModule, splits: Sequence[Split]) -> dict[str, Any]:
    charts, rows = [], []
    for column, name in enumerate(map(str, data.class_names)):
        for split in splits:
            values = data.targets(split)[:, column].double()
            quantiles = values.quantile(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).double()).tolist()
            numbers = [float(values.mean()), float(values.std(correction=0)), *quantiles]
            cells = [number_cell(number, format_metric) for number in numbers]
            rows.append([Cell(name), Cell(TITLES[split]), _count(len(values)), *cells])
        if column < MAX_HISTOGRAMS:
            everything = torch.cat([data.targets(split)[:, column] for split in splits]).tolist()
            with figure_style(font__size=12):
                axes = make_axes(WIDTH, HEIGHT, (54, 16, 12, 42))
                draw_histogram(axes, everything, x_label=name, color=column)
                svg = Markup(to_svg(axes, f"target{column}", f"Distribution of {name}"))  # noqa: S704
            charts.append(Chart(f"Distribution of {name}", svg))
    head = ["target", "split", "count", "mean", "std", "min", "25 %", "median", "75 %", "max"]
    return {"charts": charts, "tables": [Table("Targets", head, rows)]}


def feature_section(data: SupervisedDataModule, names: Sequence[str]) -> Section | None:
    """Return the section of the features of a table, before standardization; None for other data."""
    images, rows = data.subset("train")
    if len(images.shape) != 1:
        return None
    features = images.sample(rows).double()
    cells = [
        [
            Cell(str(name)),
            *(
                number_cell(float(number), format_metric)
                for number in (
                    values.mean(),
                    values.std(correction=0),
                    values.min(),
                    values.median(),
                    values.max(),
                )
            ),
        ]
        for name, values in zip(names, features.unbind(1), strict=True)
    ]
    table = Table("Features of the training rows", ["feature", "mean", "std", "min", "median", "max"], cells)
    return Section("Features", "tables", [table])


# Images


def image_section(
    data: ImageDataModule, scan: Scan, configured: tuple[Sequence[float] | None, Sequence[float] | None]
) -> Section:
    """Return the section of sizes, color modes and channel statistics."""
    total = max(1, len(scan.places))
    sizes = scan.sizes.most_common(MAX_SIZES)
    rows = [
        [Cell(f"{width} × {height}", width * height), _count(count), Cell(f"{count / total:.1%}", count)]
        for (width, height), count in sizes
    ]
    if (rest := len(scan.sizes) - len(sizes)) > 0:
        count = total - sum(count for _, count in sizes)
        rows.append([Cell(f"{rest:,} other sizes", 0), _count(count), Cell(f"{count / total:.1%}", count)])
    modes = [[Cell(mode), _count(count)] for mode, count in scan.modes.most_common()]
    channels, height, width = data.input_shape
    content = {
        "narrow": [
            Table("Width × height of the images, pixels", ["size", "images", "share"], rows),
            Table("Formats and color modes", ["format, mode", "images"], modes),
        ],
        "channels": _channel_table(data, scan, configured),
        "note": "Statistics, samples and duplicates are of the network's input, "
        f"{channels} × {height} × {width}.",
    }
    return Section("Images", "images", content)


def _channel_table(
    data: ImageDataModule, scan: Scan, configured: tuple[Sequence[float] | None, Sequence[float] | None]
) -> Table:
    values = torch.arange(256).double() / 255
    rows = []
    channels = data.input_shape[0]
    names = ["gray"] if channels == 1 else ["red", "green", "blue"] if channels == 3 else range(channels)
    for split, counts in scan.counts.items():
        for channel, name in enumerate(names):
            weights = counts[channel].double()
            total = weights.sum().clamp(min=1)
            mean = float((weights * values).sum() / total)
            std = float((weights * (values - mean).square()).sum() / total) ** 0.5
            given = [
                Cell("null: computed") if one is None else number_cell(one[channel], format_metric)
                for one in configured
            ]
            dark, bright = (float(weights[index] / total) for index in (0, 255))
            rows.append(
                [
                    Cell(TITLES[split]),
                    Cell(str(name)),
                    number_cell(mean, format_metric),
                    given[0],
                    number_cell(std, format_metric),
                    given[1],
                    Cell(f"{dark:.1%}", dark),
                    Cell(f"{bright:.1%}", bright),
                ]
            )
    head = ["split", "channel", "mean", "data.mean", "std", "data.std", "pixels of 0", "pixels of 255"]
    return Table("Channels, on the scale from 0 to 1", head, rows)


def sample_section(album: Album, scan: Scan) -> Section | None:
    """Return samples of each class, evenly spaced over its images; None for other targets than classes."""
    data = album.data
    by_class: defaultdict[int, list[Place]] = defaultdict(list)
    if data.target_type != "class":
        by_class[0] = list(scan.places)
    else:
        for place in scan.places:
            by_class[int(data.subset(place.split).images.labels[place.row])].append(place)
    groups = []
    for label in sorted(by_class)[:MAX_CLASSES]:
        places = by_class[label]
        chosen = np.unique(np.linspace(0, len(places) - 1, PER_CLASS).astype(int))
        tiles = [tile for index in chosen if (tile := album.tile(places[index])) is not None]
        name = str(data.class_names[label]) if data.target_type == "class" else "Samples"
        groups.append(ClassSamples(name, describe(len(places), "image"), tiles))
    note = f"Shown: {MAX_CLASSES} of {len(by_class):,} classes." if len(by_class) > MAX_CLASSES else ""
    return Section("Samples", "samples", {"groups": groups, "note": note}) if groups else None


# Duplicates


def describe_similarity(found: Found) -> str:
    """Return a sentence about similar pairs that are likely of different images; empty without any."""
    left_out = found.num_similar - sum(not pair.is_exact for pair in found.pairs)
    if not left_out:
        return ""
    text = f"{describe(left_out, 'pair')} with a correlation from {SIMILARITIES[0]:g} on "
    text += f"{'is' if left_out == 1 else 'are'} left out: different images are as similar here. "
    if found.least > 1:
        return text + "Near duplicates cannot be told from them; only exact copies are listed."
    return text + f"Near duplicates are those that correlate by {found.least:.4f} or more."


def duplicate_section(album: Album, scan: Scan, found: Found, *, near: bool) -> Section:
    """Return the section of exact and near duplicates, those with different labels first."""
    pairs, remark = found.pairs, describe_similarity(found)
    counts: dict[tuple[Split, ...], Counter[str]] = defaultdict(Counter)
    marked = []
    for pair in pairs:
        first, second = scan.places[pair.first], scan.places[pair.second]
        key = tuple(sorted((first.split, second.split), key=SPLITS.index))
        differs = labels_differ(album.data, first, second)
        kind = "exact" if pair.is_exact else "near"
        counts[key].update([kind, *(["different"] if differs else [])])
        marked.append((not differs, first.split == second.split, not pair.is_exact, pair, first, second))
    marked.sort(key=lambda entry: entry[:3])
    tiles = []
    for is_same, _, _, pair, first, second in marked[:MAX_PAIRS]:
        images = album.tile(first), album.tile(second)
        if images[0] is not None and images[1] is not None:
            note = "same pixels" if pair.is_exact else f"similarity {pair.similarity:.3f}"
            tiles.append(PairTile(images[0], images[1], note, not is_same))
    if not pairs:
        searched = "exact or near duplicates" if near else "exact copies"
        return Section("Duplicates", "duplicates", Duplicates(None, [], f"No {searched}. {remark}".strip()))
    rows = [
        [
            Cell(TITLES[one] if one == other else f"{TITLES[one]} and {TITLES[other]}"),
            *(_count(counts[one, other][kind]) for kind in ("exact", "near", "different")),
        ]
        for one, other in sorted(counts, key=lambda key: [SPLITS.index(split) for split in key])
    ]
    head = ["images of", "exact copies", "near duplicates", "with different labels"]
    note = "Pairs with different labels come first, then those of two splits."
    note += (
        f" Shown: {len(tiles)} of {len(pairs):,} pairs; duplicates.csv lists all."
        if len(tiles) < len(pairs)
        else ""
    )
    note += f" {remark}" if remark else ""
    note += "" if near else " Near duplicates were not searched (near=false)."
    return Section("Duplicates", "duplicates", Duplicates(Table("Pairs", head, rows), tiles, note))


# Labels


def label_section(album: Album, check: LabelCheck) -> Section:
    """Return the section of labels that are likely wrong."""
    names = list(map(str, album.data.class_names))
    tiles = [
        SuspectTile(tile, names[suspect.suggested], f"probability of the label {suspect.score:.3f}")
        for suspect in [one for one in check.suspects if one.is_issue][:MAX_SUSPECTS]
        if (tile := album.tile(suspect.place)) is not None
    ]
    covered = ", ".join(
        f"{predicted:,} of {total:,} {TITLES[split]} images"
        for split, (predicted, total) in check.coverage.items()
    )
    note = f"Checked by {plural(len(check.runs), 'run')}: {covered}, each by networks that did not see it."
    if (rest := check.num_issues - len(tiles)) > 0:
        note += f" Shown: the {len(tiles)} most suspicious; labels.csv lists {rest:,} more."
    if "train" not in check.coverage or check.coverage["train"][0] < check.coverage["train"][1]:
        note += " A sweep with folds= checks all training images."
    pairs = Counter((names[one.given], names[one.suggested]) for one in check.suspects if one.is_issue)
    rows = [
        [Cell(given), Cell(suggested), _count(count)]
        for (given, suggested), count in pairs.most_common(MAX_SIZES)
    ]
    table = Table("Most frequent", ["label", "suggested", "images"], rows) if rows else None
    return Section("Suspicious labels", "suspects", {"tiles": tiles, "note": note, "table": table})


def unreadable_section(album: Album, unreadable: Mapping[Place, str]) -> Section | None:
    """Return the section of unreadable files; None without any."""
    rows = [
        [Cell(album.name(place)), Cell(TITLES[place.split]), Cell(reason)]
        for place, reason in list(unreadable.items())[:MAX_NAMED]
    ]
    if not rows:
        return None
    caption = f"{describe(len(unreadable), 'unreadable file')}" + (
        f": the first {MAX_NAMED}; unreadable.csv lists all" if len(unreadable) > MAX_NAMED else ""
    )
    return Section("Unreadable files", "tables", [Table(caption, ["file", "split", "reason"], rows)])


def _count(value: Any) -> Cell:
    return Cell(f"{int(value):,}", float(value))
