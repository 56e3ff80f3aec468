"""Page content for a sweep, or for any folder that contains runs."""

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from project.errors import InputError
from project.reporting.html.charts import curves_chart, parallel_chart
from project.reporting.html.images import make_gallery, read_pngs
from project.reporting.html.run_page import (
    TRAIN,
    Section,
    environment_rows,
    provenance_line,
    reproduction_commands,
    run_page,
    training_commands,
)
from project.reporting.html.tables import Link, Table, format_time, jobs_table, link_to, points_table, time_of
from project.reporting.run_data import RunData
from project.reporting.runs.logs import last_lines
from project.runs.comparison import Comparison, best_line, compare
from project.runs.provenance import now
from project.runs.results import Run, read_runs
from project.runs.run_folder import RunFolder
from project.runs.sweep_folder import SweepFolder, find_sweep
from project.runs.sweep_jobs import SUCCEEDED, Job
from project.runtime.process import as_called
from project.runtime.secrets import redact_text
from project.runtime.text import duration, plural

MAX_COMPARED = 20
MAX_POINTS = 400
"""Maximum number of rows in the table of points; the table of jobs lists all."""
MAX_TITLE_KEYS, MAX_LEAD_KEYS = 4, 6
MAX_FAILURES, MAX_SAME = 10, 5
"""Maximum number of reasons of failures, and of other jobs named for each; the table of jobs lists all."""
LOG_SPACE = re.compile(r"[+~]*(?:hydra\.sweeper\.params\.)?([\w./]+)\s*=.*\btag\(\s*log\b")


@dataclass(frozen=True)
class Sweep:
    """Record, jobs and runs of a sweep, or of a folder that contains runs."""

    folder: Path
    record: dict[str, Any]  # empty if the folder is not a sweep
    jobs: dict[str, Job]  # by folder name
    runs: list[Run]
    damaged: list[str]  # reasons
    ranked: Comparison | None  # None if no run has finished

    @property
    def states(self) -> Counter[str]:
        """Number of jobs by state."""
        known = {run.folder.name for run in self.runs}
        others = [job.state for name, job in self.jobs.items() if name not in known]
        return Counter([*(run.state for run in self.runs), *others])

    @property
    def best(self) -> Run | None:
        """Best run of the best point."""
        return self.ranked.best if self.ranked else None


def read_sweep(folder: Path) -> Sweep:
    """Read all runs below a folder.

    Raises:
        InputError: the folder contains neither runs nor a sweep.
    """
    sweep = find_sweep(folder)
    record, jobs, ranked = {}, {}, None
    if sweep is not None:
        try:
            record = sweep.read_record()
        except InputError:
            record = {}
        jobs = sweep.read_jobs()
    try:
        ranked = compare([folder], guess=True)
        runs = [*(run for point in ranked.points for run in point.runs), *ranked.unfinished]
        return Sweep(folder, record, jobs, runs, ranked.damaged, ranked)
    except InputError:
        pass  # no run has finished
    try:
        runs, damaged = read_runs([folder])
    except InputError:
        if sweep is None:
            raise
        runs, damaged = [], []  # stopped before its first job started
    return Sweep(folder, record, jobs, runs, damaged, None)


def sweep_page(folder: Path, page: Path, others: Sequence[str] | None) -> dict[str, Any]:
    """Return the template variables for the page of a sweep; arguments as in `run_page`.

    Raises:
        InputError: the folder contains no runs.
    """
    sweep = read_sweep(folder)
    kind, name = "Sweep" if sweep.record else "Runs", folder.absolute().name
    ranked, best, shown = sweep.ranked, sweep.best, RunFolder(folder).shown
    images = read_pngs((file for file in sorted(folder.glob("*.png")) if file.is_file()), folder)
    points = _points_table(sweep, page)
    jobs = jobs_table(sweep.runs, sweep.jobs, ranked, page)
    return {
        "title": f"{kind} {name}",
        "kind": f"{kind} · {plural(sweep.states.total(), 'job')}",
        "states": [f"{count} {state}" for state, count in sweep.states.most_common()],
        "heading": _title(sweep) or name,
        "folder": shown,
        "written": format_time(now()),
        "lead": _describe_sweep(sweep),
        "best": Link("Best run", "#best-run") if best else None,
        "best_line": f"{best_line(ranked)}." if ranked and best else "",
        "provenance_line": provenance_line(sweep.record | _device(best)),
        "sections": [
            Section("Ranking", "ranking", _ranking(points or jobs, best)),
            Section(
                "Parallel coordinates",
                "chart",
                parallel_chart(ranked, log_keys(sweep.record)) if ranked else None,
            ),
            Section("Learning curves", "chart", curves_chart(ranked) if ranked else None),
            Section("Search", "gallery", make_gallery(images)),
            Section("Failures", "failures", _failures(sweep, page)),
            Section("All jobs", "table", jobs if points else None),
            Section("Best run", "best_run", _best_run(best, page)),
            Section("Comparison", "table", _comparison(sweep, page, others)),
            Section("How to reproduce", "sweep_reproduction", _reproduction(sweep, Path(shown))),
            Section("Environment", "environment", environment_rows(sweep.record | _device(best))),
        ],
    }


def log_keys(record: Mapping[str, Any]) -> set[str]:
    """Return the keys that a search samples on a logarithmic scale, from the overrides of a sweep."""
    found = (LOG_SPACE.match(str(word)) for word in record.get("overrides") or [])
    return {match[1] for match in found if match}


def _title(sweep: Sweep) -> str:
    keys = sweep.ranked.everywhere.leading if sweep.ranked else []
    named = [key.removeprefix("optim.") for key in keys[:MAX_TITLE_KEYS]]
    return " × ".join(named) + (" …" if len(keys) > MAX_TITLE_KEYS else "")


def _describe_sweep(sweep: Sweep) -> str:
    states, ranked = sweep.states, sweep.ranked
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    spent = sum(time_of(run, sweep.jobs) or 0.0 for run in sweep.runs)
    text = f"{plural(states.total(), 'job')}: {counts}"
    text += f"; together {duration(spent)}." if spent else "."
    if ranked is None:
        return text + " No run has finished yet."
    values = [
        f"{key} ({plural(len(set(ranked.everywhere.texts(sweep.runs, key))), 'value')})"
        for key in ranked.everywhere.leading[:MAX_LEAD_KEYS]
    ]
    text += f" Keys that differ: {', '.join(values)}." if values else ""
    if len(ranked.points) < ranked.count:
        repeated = " and ".join(ranked.shown.repetitions) or "nothing"
        text += f" Runs that differ in {repeated} only are one point: {plural(len(ranked.points), 'point')}."
    return text


def _points_table(sweep: Sweep, page: Path) -> Table | None:
    """Return the table of points; None if every point is a single run, as in the table of jobs."""
    ranked = sweep.ranked
    if ranked is None or len(ranked.points) == ranked.count:
        return None
    shown = replace(ranked, points=ranked.points[:MAX_POINTS])
    order = "Largest" if ranked.larger_is_better else "Smallest"
    caption = f"{order} {ranked.by} first; mean ± sample standard deviation over n runs"
    if len(shown.points) < len(ranked.points):
        caption += f"; the best {MAX_POINTS} of {len(ranked.points)} points"
    return points_table(shown, page, caption, own=[ranked.best.folder] if ranked.best else [])


def _device(best: Run | None) -> dict[str, Any]:
    """Return the hardware of the best run, which stands for that of the sweep."""
    device = RunFolder(best.folder).read_status().get("device") if best else None
    return {"device": device} if device else {}


def _ranking(table: Table | None, best: Run | None) -> dict[str, Any] | None:
    """Return the first table of the page, and the commands that train the best run again."""
    if table is None:
        return None
    data = RunData(best.folder) if best else None
    has_overrides = data is not None and (data.run.path / ".hydra" / "overrides.yaml").exists()
    commands = []
    if data and has_overrides:
        commands = training_commands(data.overrides, data.status.get("git"), data.command)
    return {"table": table, "commands": commands}


def _failures(sweep: Sweep, page: Path) -> dict[str, Any] | None:
    """Return failed jobs with the end of their logs, and the reasons for damaged folders."""
    known = {run.folder.name for run in sweep.runs}
    failures: list[tuple[Link, str, str, Path | None]] = [
        (link_to(run.folder, page), run.state, redact_text(run.error), run.folder)
        for run in sweep.runs
        if run.state in ("failed", "interrupted")
    ]
    failures += [
        (Link(job.name, ""), job.state, redact_text(job.error or ""), None)
        for name, job in sweep.jobs.items()
        if name not in known and job.state == "failed"
    ]
    if not failures and not sweep.damaged:
        return None
    groups: dict[tuple[str, str], list[Link]] = {}  # jobs that failed for the same reason are shown once
    logs: dict[tuple[str, str], str] = {}
    for link, state, error, folder in failures:
        groups.setdefault((state, error), []).append(link)
        logs.setdefault((state, error), last_lines(folder) if folder else "")
    shown: list[dict[str, Any]] = [
        {
            "link": links[0],
            "others": links[1 : MAX_SAME + 1],
            "count": len(links),
            "state": state,
            "error": error,
            "log": logs[state, error],
        }
        for (state, error), links in sorted(
            groups.items(), key=lambda item: (item[0][0] != "failed", -len(item[1]))
        )
    ]
    num_hidden = sum(group["count"] for group in shown[MAX_FAILURES:])
    return {"jobs": shown[:MAX_FAILURES], "num_hidden": num_hidden, "damaged": sweep.damaged}


def _best_run(best: Run | None, page: Path) -> dict[str, Any] | None:
    """Return the page content of the best run, limited to some of its sections."""
    if best is None:
        return None
    content = run_page(best.folder, page, [])
    by_title = {section.title: section for section in content["sections"] if section.content}
    shown = [by_title[name] for name in ("Curves", "Evaluation", "Exports", "Images") if name in by_title]
    folded = [by_title[name] for name in ("Configuration", "How to reproduce") if name in by_title]
    return content | {"link": link_to(best.folder, page), "shown": shown, "folded": folded}


def _comparison(sweep: Sweep, page: Path, others: Sequence[str] | None) -> Table | None:
    if not others:
        return None
    try:
        ranked = compare([sweep.folder, *map(Path, others)], guess=True)
    except InputError:
        return None
    shown = replace(ranked, points=ranked.points[:MAX_COMPARED])
    caption = f"With {', '.join(others)}, best {ranked.by} first; rows of this sweep are marked"
    return points_table(shown, page, caption, own=[run.folder for run in sweep.runs])


def _reproduction(sweep: Sweep, folder: Path) -> dict[str, Any] | None:
    if not sweep.record:
        return None
    overrides = [redact_text(str(word)) for word in sweep.record.get("overrides") or []]
    overrides = [word for word in overrides if not word.startswith(("hydra.mode=", "hydra.sweep.dir="))]
    is_done = set(sweep.states) <= set(SUCCEEDED)
    git, command = sweep.record.get("git"), SweepFolder(folder).read_command()
    found = reproduction_commands(overrides, git, command, folder, is_sweep=True, is_done=is_done)
    for extension in sweep.record.get("extensions") or []:
        words = shlex.join(redact_text(str(word)) for word in extension["overrides"])
        found["commands"]["Repeat this sweep"].append(as_called(f"{TRAIN} resume=last {words}"))
    return {"overrides": overrides, "reproduction": found}
