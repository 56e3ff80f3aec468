"""What an export shows: a table by which to choose, and the same as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from project.inference.export.benchmark import Agreement, Timing


@dataclass
class Row:
    """One way to run the network.

    Args:
        name: of the variant, and how it is run.
        file: it is in; None for the original.
        agreement: with the original on real images.
        timings: by batch size.
    """

    name: str
    file: Path | None
    size: int
    agreement: Agreement
    timings: dict[int, Timing]


def table(rows: Sequence[Row], batches: Sequence[int]) -> list[str]:
    """Lines of at most 80 columns; the first row is what the others are compared with."""
    first = rows[0]
    head = f"  {'':<21}{'MB':>6}{'accuracy':>9}{'points':>7}"
    lines = [head + "".join(f"{f'batch {batch}, ms':>17}" for batch in batches)]
    for row in rows:
        size = f"{row.size / 1e6:.3g}" if row.size else "–"
        lost = f"{100 * (row.agreement.accuracy - first.agreement.accuracy):+.2f}" if row is not first else ""
        line = f"  {row.name:<21}{size:>6}{100 * row.agreement.accuracy:>7.2f} %{lost:>7}"
        for batch in batches:
            timing = row.timings[batch]
            times = f"{first.timings[batch].median / timing.median:.1f}×" if row is not first else ""
            line += f"{f'{_short(timing.median)} ±{_short(timing.spread)}':>11}{times:>6}"
        lines.append(line.rstrip())
    return lines


def record(rows: Sequence[Row], facts: dict[str, Any]) -> dict[str, Any]:
    """The same for programs; accuracies as fractions, times in milliseconds."""
    entries = [
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
    return {**facts, "variants": entries}


def _short(number: float) -> str:
    """Three digits or so, without an exponent."""
    return f"{number:.{2 if number < 1 else 1 if number < 100 else 0}f}"
