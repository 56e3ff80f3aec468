"""`scripts/runs.py`: list, filter, sort, tag, annotate and export runs, on the terminal or as a page."""

import csv
import json
import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from project.config.command_options import Conditions, option
from project.errors import InputError
from project.reporting.compare import MAX_WIDTH
from project.reporting.html.tables import format_metric, format_time
from project.reporting.runs.notes import write_notes
from project.reporting.runs.run_index import DEAD, Record, read_records
from project.reporting.runs.run_table import Column, RunTable
from project.runs.results import format_value, is_number
from project.runtime import lazy_imports
from project.runtime.console import BEST_STYLE, table, terminal_width
from project.runtime.console import Column as TableColumn
from project.runtime.csv_files import escape_all
from project.runtime.output_files import output_file, refuse_unwritable_output
from project.runtime.text import duration, plural, printable, shorten
from project.runtime.web_server import LOOPBACK, MAX_PORT

EXAMPLES = """\
examples:
  python scripts/runs.py model=cnn 'val/acc>0.98' state=done sort=-val/acc
  python scripts/runs.py state=failed,dead           runs that did not end well
  python scripts/runs.py 'lr<=0.01' add_tags=paper set_note='used in table 2'
  python scripts/runs.py tags=paper csv=paper.csv
  python scripts/runs.py page=true                   the same as a page
conditions: = != < <= > >= and ~ (contains); values a,b and a* ; quote < and >
"""
MAX_ROWS = 50


@dataclass
class Options:
    """List, filter, tag and export runs. Deletes nothing."""

    runs: list[str] = option(
        ["outputs"], "run folders, sweep folders, or folders above them; `runs=` is optional"
    )
    where: Conditions = option(Conditions(), "conditions on columns, all of which must hold")
    sort: str = option("-started", "column to sort by; -COLUMN: largest first")
    top: int = option(MAX_ROWS, "maximum number of rows on the terminal", least=1)
    add_tags: list[str] | None = option(None, "tags to add to these runs")
    remove_tags: list[str] | None = option(None, "tags to remove from these runs")
    set_note: str | None = option(None, "note about each of these runs, in its notes.json")
    csv: Path | None = option(None, "CSV file with all columns of these runs")
    json: Path | None = option(None, "JSON file with all columns of these runs")
    page: bool = option(False, "serve a local page with these runs until Ctrl-C")
    port: int = option(8765, "port of the page; 0: any free port", least=0, most=MAX_PORT)
    host: str = option(LOOPBACK, "address of the page; any but 127.0.0.1 requires a token")
    open: bool = option(False, "open the page in a browser")


def main(options: Options) -> None:
    """List runs, or serve the page.

    Raises:
        InputError: there is no run or no such column, or a file cannot be written.
    """
    lazy_imports.freeze_gc()
    if options.page:
        _refuse_without_page(options)
        from project.reporting.runs.server import serve

        folders = [Path(folder).expanduser() for folder in options.runs]
        query = {"filter": " ".join(_quote(text) for text in options.where)}
        query |= {"sort": options.sort} if options.sort != "-started" else {}
        serve(folders, options.host, options.port, query, opened=options.open, is_editable=True)
        return
    for key, file in (("csv", options.csv), ("json", options.json)):
        if file:
            refuse_unwritable_output(f"{key}={file}", file)
    rows = RunTable(read_records(options.runs))
    chosen = rows.sorted(rows.select(options.where), options.sort)
    if options.add_tags or options.remove_tags or options.set_note is not None:
        _annotate(chosen, options)
        rows = RunTable(read_records(options.runs))
        keys = {record.key for record in chosen}
        chosen = rows.sorted([record for record in rows.records if record.key in keys], options.sort)
    print(render(rows, chosen, options.top))
    if options.csv:
        write_csv(rows, chosen, options.csv)
        print(f"{plural(len(chosen), 'row')} in {options.csv}")
    if options.json:
        write_json(rows, chosen, options.json)
        print(f"{plural(len(chosen), 'run')} in {options.json}")


def _refuse_without_page(options: Options) -> None:
    for key in ("add_tags", "remove_tags", "set_note", "csv", "json"):
        if getattr(options, key) is not None:
            raise InputError(f"{key}={getattr(options, key)}: not with page=true; leave one of them out")


def _quote(text: str) -> str:
    return f'"{text}"' if " " in text else text


def _annotate(records: Sequence[Record], options: Options) -> None:
    """Change the notes of all records; the values are checked before the first file is written."""
    records = [record for record in records if record.run is not None]
    changed = [
        record.notes.changed(options.add_tags or (), options.remove_tags or (), options.set_note)
        for record in records
    ]
    for record, new in zip(records, changed, strict=True):
        write_notes(Path(record.key), new)
    print(f"notes of {plural(len(records), 'run')} written\n")


def render(rows: RunTable, records: Sequence[Record], top: int, width: int | None = None) -> str:
    """Return records as a text table with notes.

    Args:
        rows: the table of all runs.
        records: those to show, in order.
        top: maximum number of rows.
        width: width in columns (default None: of the terminal).
    """
    width = terminal_width() if width is None else width
    states = Counter(record.state for record in records)
    counts = ", ".join(f"{count:,} {state}" for state, count in states.most_common())
    lines = [f"{len(records):,} of {plural(len(rows.records), 'run')}" + (f": {counts}" if counts else "")]
    shown = records[:top]
    if shown:
        columns, hidden = _fit(rows, shown, width)
        heads = [TableColumn(printable(column.title), fixed=True) for column in columns]
        cells = [[_cell(rows, record, column) for column in columns] for record in shown]
        best = rows.comparison.best if rows.comparison else None
        styles = {place: BEST_STYLE for place, record in enumerate(shown) if best and record.run is best}
        lines += ["", table(heads, cells, width=width, row_styles=styles), ""]
        if hidden:
            text = f"without room: {', '.join(column.title for column in hidden)}; csv=FILE has all"
            lines += textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    if len(records) > top:
        lines.append(f"not shown: {plural(len(records) - top, 'run')}; top={len(records)} shows all")
    if states[DEAD]:
        lines.append("dead: the process has ended without recording it; continue with resume=FOLDER")
    damaged = [record.error for record in records if record.state == "damaged"]
    lines += [f"damaged: {shorten(printable(error), width - 9)}" for error in damaged[:5]]
    return "\n".join(lines)


def _fit(rows: RunTable, records: Sequence[Record], width: int) -> tuple[list[Column], list[Column]]:
    """Return the most important columns that fit the width and have values, and the others."""
    columns = [
        column
        for column in rows.columns
        if column.name == "name" or any(_cell(rows, record, column) for record in records)
    ]
    varied = Counter(key for record in records for key in (record.run.overrides if record.run else ()))
    wanted = ["name", "state", rows.monitor, "tags", "time", rows.monitor.replace("val/", "test/")]

    def rank_column(column: Column) -> tuple[int, int]:
        """Return the place of a column: main facts and metrics, keys of command lines, then the rest."""
        if column.name in wanted:
            return wanted.index(column.name), 0
        if column.kind == "key":
            return (6 if column.name in varied else 8), -varied[column.name]
        return (7 if column.kind == "metric" else 9), 0

    order = sorted(columns, key=rank_column)
    kept: list[Column] = []
    room = width
    for column in order:
        needed = 2 + max(len(column.title), *(len(_cell(rows, record, column)) for record in records))
        if needed <= room or not kept:
            kept.append(column)
            room -= needed
    return [column for column in columns if column in kept], [
        column for column in columns if column not in kept
    ]


def _cell(rows: RunTable, record: Record, column: Column) -> str:
    value = rows.text_or_number(record, column)
    if value is None:
        return ""
    if column.name == "time":
        return duration(float(value))
    if column.name == "started":
        return format_time(value)
    if column.name == "epoch":
        return f"{value:g}/{record.epochs:g}" if record.epochs else f"{value:g}"
    if is_number(value):
        return format_metric(value) if column.kind == "metric" else format_value(value)
    return shorten(printable(str(value)), MAX_WIDTH * 2 if column.name == "name" else MAX_WIDTH)


def export_rows(rows: RunTable, records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return all columns of records by full name: folder, keys that differ, metrics and facts."""
    facts = ("name", "state", "started", "time", "epoch", "tags", "note", "error")
    differences = rows.differences
    following = [Column(key, key, "key") for key in differences.following] if differences else []
    columns = [column for column in rows.columns if column.kind == "key"] + following
    metrics = [Column(name, name, "metric") for name in rows.metrics]
    columns = [Column("folder", "folder", "fact"), *columns, *metrics]
    columns += [Column(name, name, "fact") for name in facts]
    return [{column.name: rows.value(record, column) for column in columns} for record in records]


def write_csv(rows: RunTable, records: Sequence[Record], file: Path) -> None:
    """Write a CSV file with a row per run.

    Raises:
        InputError: the file cannot be written.
    """
    content = export_rows(rows, records)
    with (
        output_file(f"csv={file}", file) as partial,
        partial.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(escape_all(content[0] if content else ["folder"]))
        for row in content:
            writer.writerow(escape_all(map(_csv_value, row.values())))


def _csv_value(value: Any) -> Any:
    if value is None or is_number(value):
        return value
    return ",".join(value) if isinstance(value, tuple) else format_value(value)


def write_json(rows: RunTable, records: Sequence[Record], file: Path) -> None:
    """Write a JSON file with an object per run; NaN and infinity are strings.

    Raises:
        InputError: the file cannot be written.
    """
    content = [
        {name: _json_value(value) for name, value in row.items()} for row in export_rows(rows, records)
    ]
    with output_file(f"json={file}", file) as partial:
        partial.write_text(json.dumps(content, indent=2, default=str, allow_nan=False) + "\n", "utf-8")


def _json_value(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
