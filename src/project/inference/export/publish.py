"""Output folder of an export: checked files, the JSON that lists them, and the table of variants."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from project.errors import InputError
from project.inference.export.benchmark import Agreement, Timing
from project.inference.export.options import FLOAT32, FORMATS, VARIANTS
from project.runtime.console import Column, table
from project.runtime.files import replace_text


@dataclass
class Row:
    """A variant of the network, or a way to run it."""

    name: str
    file: Path | None
    size: int
    agreement: Agreement
    timings: dict[int, Timing] = field(default_factory=dict)


def file_name(format: str, variant: str) -> str:
    """Return the name of a variant's file."""
    return f"{'model' if variant == FLOAT32 else f'model_{variant}'}{FORMATS[format].suffix}"


def publish(folder: Path, format: str, rows: Sequence[Row], facts: dict[str, Any]) -> list[Path]:
    """Move checked files into the output folder and list them in `FORMAT.json`.

    Files of an earlier export in this format that are not replaced are removed: they are variants of other
    weights.
    """
    listing = folder / f"{format}.json"
    names = {row.file.name for row in rows if row.file}
    removed = [folder / name for name in _listed(listing, format) if name not in names]
    for file in removed:
        file.unlink(missing_ok=True)
    for row in rows:
        if row.file and row.file.parent != folder:
            target = folder / row.file.name
            if row.file.exists():  # several rows may share one file
                row.file.replace(target)
            row.file = target
    variants = [
        {
            "name": row.name,
            "file": row.file.name if row.file else None,
            "bytes": row.size,
            "accuracy": row.agreement.accuracy,
            "largest_difference": row.agreement.difference,
            "ms": {str(batch): timing._asdict() for batch, timing in row.timings.items()},
        }
        for row in rows
    ]
    replace_text(listing, json.dumps({**facts, "variants": variants}, indent=2, ensure_ascii=False) + "\n")
    return removed


def refuse_foreign(folder: Path, format: str, variants: Sequence[str]) -> None:
    """Check that an export replaces only files of an earlier export."""
    listing = folder / f"{format}.json"
    wanted = [file_name(format, variant) for variant in (FLOAT32, *variants)]
    earlier = _listed(listing, format)
    for name in [*wanted, *([] if earlier else [listing.name])]:
        if os.path.lexists(folder / name) and name not in earlier:
            raise InputError(f"output={folder}: holds a {name} that no export wrote; give another folder")


def _listed(listing: Path, format: str) -> list[str]:
    """Return the files that an earlier export listed; other names are ignored."""
    try:
        entries = json.loads(listing.read_bytes())["variants"]
        found = {entry["file"] for entry in entries if entry["file"]}
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return []
    return [name for variant in (FLOAT32, *VARIANTS) if (name := file_name(format, variant)) in found]


def render(rows: Sequence[Row], batch_sizes: Sequence[int]) -> str:
    """Lay out the variants; the first row is the original, with which the others are compared."""
    original = rows[0]
    cells = []
    for row in rows:
        lost = 100 * (row.agreement.accuracy - original.agreement.accuracy)
        cell = [row.name, f"{row.size / 1e6:.3g}" if row.size else "–"]
        cell += [f"{100 * row.agreement.accuracy:.2f} %", "" if row is original else f"{lost:+.2f}"]
        for batch_size in batch_sizes:
            time, reference = row.timings[batch_size], original.timings[batch_size]
            speedup = f"{reference.median / time.median:.1f}×"
            cell.append(f"{_short(time.median)} ±{_short(time.spread)} {speedup:>5}")
        cells.append(cell)
    times = [Column(f"batch {batch_size}, ms", right=True, fixed=True) for batch_size in batch_sizes]
    return table([Column("", right=False), "MB", "accuracy", "delta", *times], cells, width=80)


def _short(number: float) -> str:
    return f"{number:.{2 if number < 1 else 1 if number < 100 else 0}f}"
