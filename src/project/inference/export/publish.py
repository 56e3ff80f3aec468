"""Checked files take their places in the folder of an export, and those of earlier weights go."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from project.errors import InputError
from project.inference.export.formats import SUFFIXES
from project.inference.export.options import FLOAT32, VARIANTS
from project.inference.export.report import Row, record
from project.runtime.files import replace_text


def file_name(format: str, variant: str) -> str:
    """What a variant's file is called."""
    return f"{'model' if variant == FLOAT32 else f'model_{variant}'}{SUFFIXES[format]}"


def keep(folder: Path, format: str, rows: Sequence[Row], facts: dict[str, Any]) -> list[Path]:
    """Put files where they belong, each whole or not at all, and say in `FORMAT.json` what they are.

    Files that an earlier export of this format made, and this one did not, are removed: beside the new ones
    they would pass for variants of the same weights.

    Args:
        folder: of the export.
        format: of all files.
        rows: of the variants; each comes to know where its file is by now.
        facts: that hold for all of them.

    Returns:
        What was removed.

    Raises:
        OSError: the folder cannot be written.
    """
    listing = folder / f"{format}.json"
    names = {row.file.name for row in rows if row.file}
    removed = [folder / name for name in _listed(listing, format) if name not in names]
    for file in removed:
        file.unlink(missing_ok=True)
    for row in rows:
        if row.file and row.file.parent != folder:
            target = folder / row.file.name
            if row.file.exists():  # several rows may be of one file
                row.file.replace(target)
            row.file = target
    replace_text(listing, json.dumps(record(rows, facts), indent=2, ensure_ascii=False) + "\n")
    return removed


def refuse_foreign(folder: Path, format: str, variants: Sequence[str]) -> None:
    """Make sure that an export's files are new, or an earlier one's.

    Raises:
        InputError: one of them is somebody's own.
    """
    listing = folder / f"{format}.json"
    wanted = [file_name(format, variant) for variant in (FLOAT32, *variants)]
    earlier = _listed(listing, format)
    for name in [*wanted, *([] if earlier else [listing.name])]:
        if os.path.lexists(folder / name) and name not in earlier:
            raise InputError(f"output={folder}: holds a {name} that no export wrote; give another folder")


def _listed(listing: Path, format: str) -> list[str]:
    """Names of files that are on record; none but those that an export gives."""
    try:
        entries = json.loads(listing.read_bytes())["variants"]
        found = {entry["file"] for entry in entries if entry["file"]}
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return []
    return [name for variant in (FLOAT32, *VARIANTS) if (name := file_name(format, variant)) in found]
