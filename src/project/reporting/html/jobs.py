"""All jobs of a sweep, and why some failed."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from project.reporting.html.html import Markup, element, join
from project.reporting.html.reading import RunStory
from project.reporting.html.tables import (
    Cell,
    column_names,
    duration_cell,
    link,
    metric_cell,
    state_cell,
    table,
    wanted_metrics,
)
from project.reporting.html.wording import badge
from project.runs.collect import Comparison
from project.runs.hparam_diff import Differences, short_names
from project.runs.results import DURATION, Run, natural
from project.runs.sweep_jobs import Job
from project.runs.table import RESERVED, plural, shorten
from project.runtime.secrets import redact_text

LAST_LINES = 12
MOST_FAILURES = 10
"""That are told with the last lines of their logs; the table has the others."""
WIDEST = 32


def jobs_table(
    runs: Sequence[Run], jobs: Mapping[str, Job], ranked: Comparison | None, place: Path
) -> Markup | None:
    """A row a job, best first; behind those that are done the others, with their states.

    Args:
        runs: all that can be read.
        jobs: on a sweep's record, by the name of their folders; those without a run have a row too.
        ranked: those that are done; None if none is.
        place: folder of the page, to which links are relative.
    """
    if not runs and not jobs:
        return None
    by, best = (ranked.by, ranked.best_first) if ranked else ("", [])
    places = {run.folder: number for number, run in enumerate(best)}
    ordered = sorted(runs, key=lambda run: (places.get(run.folder, len(best)), natural(run.folder.name)))
    differences = Differences(runs) if runs else None
    keys = [*differences.told, *differences.repetitions] if differences else []
    names = short_names(keys, RESERVED)
    metrics = wanted_metrics(list(dict.fromkeys(name for run in runs for name in run.metrics)), by)
    texts = {key: differences.texts(ordered, key) for key in keys} if differences else {}
    rows = []
    for number, run in enumerate(ordered):
        assert differences is not None
        values = [differences.value(run, key) for key in keys]
        cells = [
            Cell(shorten(texts[key][number], WIDEST), _order(value), number=_order(value) is not None)
            for key, value in zip(keys, values, strict=True)
        ]
        measured = [metric_cell(run.metrics, name) for name in metrics]
        time = run.metrics.get(DURATION)
        rows.append(
            [Cell(link(run.folder, place)), *cells, *measured, state_cell(run.state), duration_cell(time)]
        )
    known = {run.folder.name for run in runs}
    for name, job in jobs.items():
        if name not in known:
            own = job.settings
            cells = [Cell(shorten(own.get(key, ""), WIDEST)) for key in keys]
            if not keys:
                cells = []
            label = name if keys or not job.label else f"{name}: {job.label}"
            empty = [Cell("", math.nan, number=True) for _ in metrics]
            rows.append([Cell(label), *cells, *empty, state_cell(job.state), duration_cell(job.duration_s)])
    head = ["job", *(names[key] for key in keys), *column_names(metrics), "state", "time"]
    order = "largest" if ranked is None or ranked.larger_is_better else "smallest"
    caption = plural(len(rows), "job") + (f", {order} {by} first, point by point" if best else "")
    return table(head, rows, caption=caption, marked=[0] if best else [])


def _order(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def failures(
    runs: Sequence[Run], jobs: Mapping[str, Job], damaged: Sequence[str], place: Path
) -> Markup | None:
    """Why jobs failed, with the last lines of their logs; None if none did."""
    failed = [run for run in runs if run.state in ("failed", "interrupted")]
    known = {run.folder.name for run in runs}
    lost = [job for name, job in jobs.items() if name not in known and job.state == "failed"]
    parts = [_failure(run, place) for run in failed[:MOST_FAILURES]]
    parts += [_lost(job) for job in lost[: max(0, MOST_FAILURES - len(failed))]]
    hidden = len(failed) + len(lost) - len(parts)
    if hidden > 0:
        parts.append(element("p", f"… and {hidden} more, in the table of all jobs.", class_="note"))
    if damaged:
        shown = [element("li", line) for line in damaged[:MOST_FAILURES]]
        parts += [
            element("h3", f"Passed over, for their files are damaged: {len(damaged)}"),
            element("ul", shown),
        ]
    return join(parts) if parts else None


def _lost(job: Job) -> Markup:
    """A job that left no run folder."""
    heading = element("h4", job.name, " ", badge(job.state))
    return element("article", heading, element("p", redact_text(job.error or "")), class_="card failure")


def _failure(run: Run, place: Path) -> Markup:
    lines = [line.rstrip() for line in redact_text(RunStory(run.folder).log).splitlines() if line.strip()]
    tail = element(
        "details",
        element("summary", "The last lines of its log"),
        element("pre", "\n".join(lines[-LAST_LINES:])),
        open=run.state == "failed",
    )
    return element(
        "article",
        element("h4", link(run.folder, place), " ", badge(run.state)),
        element("p", redact_text(run.error)) if run.error else None,
        tail if lines else None,
        class_="card failure",
    )
