"""The page of a sweep, or of any folder with runs below it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from project.errors import InputError
from project.reporting.html.curves import run_charts
from project.reporting.html.exports import exports
from project.reporting.html.figures import gallery, read_figures, read_pngs
from project.reporting.html.html import Markup, element, join
from project.reporting.html.jobs import failures, jobs_table
from project.reporting.html.outcome import cards, evaluations
from project.reporting.html.overlay import overlay
from project.reporting.html.page import Section, heading, page
from project.reporting.html.parallel import parallel_coordinates
from project.reporting.html.reading import RunStory
from project.reporting.html.reproduce import reproduce
from project.reporting.html.settings import environment, settings, words
from project.reporting.html.sweep_reading import Sweep, read, refuse_missing
from project.reporting.html.tables import link, points_table
from project.reporting.html.wording import badge, commit, metric, moment, summary
from project.runs.collect import Comparison, compare_by_monitor
from project.runs.provenance import now
from project.runs.ranking import tie_note
from project.runs.results import DURATION, Run
from project.runs.run_folder import RunFolder
from project.runs.table import plural
from project.runtime.secrets import redact_text
from project.runtime.text import duration

MOST_COMPARED = 20
MOST_POINTS = 100
"""Rows of the table of points; that of all jobs has the others."""


def sweep_page(folder: Path, place: Path, others: Sequence[str] | None) -> str:
    """Tell a sweep.

    Args:
        folder: the sweep's.
        place: folder of the page, to which its links are relative.
        others: folders with runs to compare it with.

    Raises:
        InputError: there is nothing to tell, or no run below one of `others`.
    """
    sweep = read(folder)
    kind = "Sweep" if sweep.record else "Runs"
    name = folder.absolute().name
    above = join(
        heading(kind, _title(sweep, name), _badges(sweep), RunFolder(folder).shown), _summary(sweep, place)
    )
    drawn = [file for file in sorted(folder.glob("*.png")) if file.is_file()]
    points = _ranking(sweep, place)
    jobs = jobs_table(sweep.runs, sweep.jobs, sweep.ranked, place)
    sections = [
        Section("Ranking", points or jobs),
        Section("What mattered", _mattered(sweep)),
        Section("Learning curves", overlay(sweep.ranked) if sweep.ranked else None),
        Section("Search", gallery(read_pngs(drawn, folder))),
        Section("Failures", failures(sweep.runs, sweep.jobs, sweep.damaged, place)),
        Section("All jobs", jobs if points else None),
        Section("Best run", _best(sweep, place)),
        Section("Comparison", _comparison(sweep, place, others)),
        Section("How to reproduce", _again(sweep)),
        Section("Environment", environment(sweep.record) if sweep.record else None),
    ]
    return page(f"{kind} {name}", above, sections, f"Written {moment(now())} from {RunFolder(folder).shown}")


def _title(sweep: Sweep, name: str) -> str:
    keys = sweep.ranked.shown.told if sweep.ranked else []
    if not keys:
        return name
    named = [key.removeprefix("optim.") for key in keys[:4]]
    return " × ".join(named) + (" …" if len(keys) > 4 else "")


def _badges(sweep: Sweep) -> Markup:
    return join([badge_of(state, count) for state, count in sweep.states.most_common()])


def badge_of(state: str, count: int) -> Markup:
    """A state with the number of jobs in it."""
    return join(element("span", str(count), class_="count"), " ", badge(state), " ")


def _summary(sweep: Sweep, place: Path) -> Markup:
    states = sweep.states
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    lead: list[object] = [f"{plural(sum(states.values()), 'run')}: {counts}."]
    if sweep.ranked is not None:
        lead += [_differing(sweep.ranked), _told_best(sweep.ranked, sweep.best, place)]
    elif sweep.runs:
        lead.append(" None is done yet, so there is nothing to rank.")
    return join(
        element("p", [part for part in lead if part], class_="lead"),
        element("p", _circumstances(sweep), class_="dim"),
    )


def _differing(ranked: Comparison) -> str:
    """In what the runs differ."""
    first = [point.runs[0] for point in ranked.points]
    values = [f"{key} ({len(set(ranked.shown.texts(first, key)))} values)" for key in ranked.shown.told[:6]]
    text = f" They differ in {', '.join(values)}." if values else ""
    if len(ranked.points) < ranked.count:
        alone = " and ".join(ranked.shown.repetitions) or "nothing"
        text += f" Runs that differ in {alone} alone are one point: {len(ranked.points)} in all."
    return text


def _told_best(ranked: Comparison, best: Run | None, place: Path) -> Markup | None:
    """What did best, and how well."""
    if best is None:
        return None
    told = [f"{key.rpartition('.')[2]} {ranked.shown.texts([best], key)[0]}" for key in ranked.shown.told[:4]]
    text = f" ({', '.join(told)})" if told else ""
    text += f", has {ranked.by} {metric(ranked.by, best.metrics[ranked.by])}"
    if "test/acc" in best.metrics and ranked.by != "test/acc":
        text += f" and a test accuracy of {metric('test/acc', best.metrics['test/acc'])}"
    point = ranked.points[0].score(ranked.by)
    text += f". It is the best run of the best point: {ranked.by} {point}"
    text += f"; {note}" if (note := tie_note(ranked.ties)) else ""
    return join(" The best run, ", link(best.folder, place), f"{text}.")


def _circumstances(sweep: Sweep) -> str:
    spent = sum(run.metrics.get(DURATION, 0.0) for run in sweep.runs if run.done)
    versions = sweep.record.get("versions") or {}
    parts = [
        f"Started {moment(sweep.record.get('started'))}" if sweep.record.get("started") else "",
        f"on {sweep.record['host']}" if sweep.record.get("host") else "",
        f"{duration(spent)} of training in all" if spent else "",
        f"commit {commit(sweep.record.get('git'))}" if commit(sweep.record.get("git")) else "",
        *(f"{name} {versions[name]}" for name in ("torch", "lightning", "python") if name in versions),
    ]
    return " · ".join(part for part in parts if part)


def _ranking(sweep: Sweep, place: Path) -> Markup | None:
    ranked = sweep.ranked
    if ranked is None or len(ranked.points) == ranked.count:  # the table of all jobs is as good
        return None
    best = sweep.best
    shown = replace(ranked, points=ranked.points[:MOST_POINTS])
    order = "largest" if ranked.larger_is_better else "smallest"
    caption = f"{order.capitalize()} {ranked.by} first"
    if len(ranked.points) < ranked.count:
        caption += "; mean ± sample standard deviation over n runs"
    if len(shown.points) < len(ranked.points):
        caption += f"; the best {MOST_POINTS} of {len(ranked.points)} points"
    return points_table(shown, place, caption, own=[best.folder] if best else [])


def _mattered(sweep: Sweep) -> Markup | None:
    return parallel_coordinates(sweep.ranked) if sweep.ranked else None


def _best(sweep: Sweep, place: Path) -> Markup | None:
    if sweep.best is None:
        return None
    story = RunStory(sweep.best.folder)
    again = reproduce(story.overrides, story.status.get("git"), Path(story.run.shown))
    return join(
        element("p", "In ", link(sweep.best.folder, place), "."),
        summary(story),
        cards(story),
        element("h3", "Curves"),
        run_charts(story),
        _titled("Evaluation", evaluations(sweep.best.folder)),
        _titled("Exports", exports(sweep.best.folder)),
        _titled("Pictures", gallery(read_figures(sweep.best.folder))),
        element("details", element("summary", "Its configuration"), settings(story)),
        element("details", element("summary", "How to make this one run again"), again),
    )


def _titled(title: str, content: Markup | None) -> Markup | None:
    return join(element("h3", title), content) if content else None


def _comparison(sweep: Sweep, place: Path, others: Sequence[str] | None) -> Markup | None:
    if not others:
        return None
    refuse_missing(others)
    try:
        ranked = compare_by_monitor([sweep.folder, *map(Path, others)])
    except InputError:
        return None
    shown = replace(ranked, points=ranked.points[:MOST_COMPARED])
    caption = f"With {', '.join(others)}, best {ranked.by} first; rows of this sweep are marked"
    return points_table(shown, place, caption, own=[run.folder for run in sweep.runs])


def _again(sweep: Sweep) -> Markup | None:
    if not sweep.record:
        return None
    overrides = [redact_text(str(word)) for word in sweep.record.get("overrides") or []]
    overrides = [word for word in overrides if not word.startswith("hydra.mode=")]
    done = set(sweep.states) <= {"done", "pruned"}
    return join(
        element("h3", "Asked for on the command line"),
        words(overrides),
        reproduce(
            overrides, sweep.record.get("git"), Path(RunFolder(sweep.folder).shown), multirun=True, done=done
        ),
    )
