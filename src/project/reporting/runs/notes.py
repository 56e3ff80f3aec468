"""Tags and a note about a run, in `notes.json` in its folder."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from project.errors import InputError
from project.runtime.atomic_files import reason_of, replace_text

NAME = "notes.json"
TAG = re.compile(r"[^\s,=<>~!\"'\x00-\x1f\x7f]+")
MAX_TAG, MAX_TAGS, MAX_NOTE = 50, 50, 10_000
"""Longest tag [characters], most tags, longest note [characters]."""


@dataclass(frozen=True)
class Notes:
    """Tags and note of a run."""

    tags: tuple[str, ...] = ()
    note: str = ""

    def changed(
        self, add: Iterable[str] = (), remove: Iterable[str] = (), note: str | None = None
    ) -> "Notes":
        """Return the notes with some tags added, then others removed, and the note replaced unless None.

        Raises:
            InputError: a tag or the note is too long, or a tag contains a space, a comma or an operator.
        """
        removed = set(remove)
        tags = tuple(dict.fromkeys(tag for tag in (*self.tags, *add) if tag not in removed))
        for tag in tags:
            if not TAG.fullmatch(tag) or len(tag) > MAX_TAG:
                raise InputError(
                    f"add_tags={tag}: not a tag (expected up to {MAX_TAG} characters without spaces, commas, "
                    "quotes and =<>~!); give a short word"
                )
        if len(tags) > MAX_TAGS:
            raise InputError(f"add_tags={','.join(tags[-3:])}: more than {MAX_TAGS} tags; remove some")
        text = self.note if note is None else note
        if len(text) > MAX_NOTE:
            raise InputError(
                f"set_note: {len(text):,} characters (expected at most {MAX_NOTE:,}); shorten it"
            )
        return Notes(tags, text)


def read_notes(folder: Path) -> Notes:
    """Return the notes of a run; empty if the file is missing or damaged."""
    try:
        found = json.loads((folder / NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return Notes()
    if not isinstance(found, dict):
        return Notes()
    tags = found.get("tags")
    tags = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    note = found.get("note")
    return Notes(tuple(tags), note if isinstance(note, str) else "")


def write_notes(folder: Path, notes: Notes) -> None:
    """Write the notes of a run atomically, unless they are unchanged.

    Raises:
        InputError: the file cannot be written.
    """
    if notes == read_notes(folder):
        return
    try:
        replace_text(folder / NAME, json.dumps(asdict(notes), indent=2, ensure_ascii=False) + "\n")
    except (OSError, UnicodeEncodeError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else "not valid text"
        raise InputError(
            f"{folder / NAME}: cannot be written ({reason}); make the folder writable"
        ) from error
