"""The page of one run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from project.errors import InputError
from project.reporting.html.curves import run_charts
from project.reporting.html.exports import exports
from project.reporting.html.figures import gallery, read_figures
from project.reporting.html.html import Markup, element, join
from project.reporting.html.outcome import cards, evaluations
from project.reporting.html.page import Section, heading, log_section, page
from project.reporting.html.reading import RunStory
from project.reporting.html.reproduce import reproduce
from project.reporting.html.settings import environment, settings
from project.reporting.html.sweep_reading import refuse_missing
from project.reporting.html.tables import points_table
from project.reporting.html.wording import badge, moment, summary
from project.runs.collect import Comparison, compare
from project.runs.provenance import now
from project.runs.results import natural
from project.runtime.secrets import redact_text

MOST_OTHERS = 40
"""Runs of the same experiment that are read, the latest ones."""
MOST_ROWS = 12


def run_page(folder: Path, place: Path, others: Sequence[str] | None) -> str:
    """Tell a run.

    Args:
        folder: the run's.
        place: folder of the page, to which its links are relative.
        others: folders with runs to compare it with; None for those beside it.

    Raises:
        InputError: there are no runs below one of `others`.
    """
    story = RunStory(folder)
    name = str(story.status.get("name") or story.config.get("name") or folder.name)
    above = join(
        heading("Run", name, badge(story.state), story.run.shown),
        summary(story),
        cards(story),
        _error(story),
    )
    sections = [
        Section("Curves", run_charts(story)),
        Section("Evaluation", evaluations(folder)),
        Section("Pictures", gallery(read_figures(folder))),
        Section("Exports", exports(folder)),
        Section("Comparison", comparison_of(folder, place, others)),
        Section("Configuration", settings(story)),
        Section("How to reproduce", _again(story)),
        Section("Environment", environment(story.status)),
        Section("Log", log_section(redact_text(story.log), opened=story.state == "failed")),
    ]
    return page(f"{name}: {story.state}", above, sections, f"Written {moment(now())} from {story.run.shown}")


def _again(story: RunStory) -> Markup:
    done = story.state in ("done", "pruned")
    return reproduce(story.overrides, story.status.get("git"), Path(story.run.shown), done=done)


def _error(story: RunStory) -> Markup | None:
    error = str(story.status.get("error") or "")
    return element("pre", redact_text(error), class_="error") if error and story.state == "failed" else None


def comparison_of(folder: Path, place: Path, others: Sequence[str] | None) -> Markup | None:
    """A run among others, best first; None if there are no others that are done."""
    if others is None:
        folders, what = _beside(folder), f"the others in {folder.absolute().parent.name}"
    else:
        folders, what = [Path(other) for other in others], ", ".join(others)
    if not folders:
        return None
    if others is not None:
        refuse_missing(others)
    try:
        ranked = compare([folder, *folders], _watched(folder), each=True)
    except InputError:  # none is done, or they measured other things
        return None
    if ranked.count < 2:
        return None
    kept = _head(ranked, folder)
    caption = f"This run and {what}, by {ranked.by}"
    if len(kept.points) < len(ranked.points):
        caption += f": the best of {len(ranked.points)}"
    return points_table(kept, place, caption, own=[folder])


def _watched(folder: Path) -> str | None:
    return RunStory(folder).monitor or None


def _beside(folder: Path) -> list[Path]:
    """The other runs of the same experiment or sweep: the latest ones."""
    found = [
        other
        for other in folder.absolute().parent.iterdir()
        if (other / "status.json").exists() and (other / "config.yaml").exists()
    ]
    found = [other for other in found if other.resolve() != folder.resolve()]
    return sorted(found, key=lambda other: natural(other.name))[-MOST_OTHERS:]


def _head(ranked: Comparison, folder: Path) -> Comparison:
    """The best runs, and this one."""
    points = ranked.points[:MOST_ROWS]
    own = [point for point in ranked.points if point.runs[0].folder.resolve() == folder.resolve()]
    points += [point for point in own if point not in points]
    return replace(ranked, points=points)
