"""A run in words and numbers that people say."""

import math
from datetime import UTC, datetime

from project.reporting.html.evaluated import accuracy_interval
from project.reporting.html.html import Markup, element, join
from project.reporting.html.reading import RunStory
from project.runtime.text import duration

STATES = {
    "done": "done",
    "pruned": "given up by the search",
    "failed": "failed",
    "interrupted": "interrupted",
    "running": "running",
    "waiting": "waiting",
}


def percent(share: float, digits: int = 2) -> str:
    """A share as people say it: `97.22 %`."""
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else f"{share:g}"


def metric(name: str, value: float) -> str:
    """A metric's value: shares as percentages, other numbers with four digits."""
    if not math.isfinite(value):
        return f"{value:g}"
    if is_share(name):
        return percent(value)
    if value == int(value) and abs(value) >= 1:
        return f"{value:,.0f}"
    return f"{value:.4f}" if 0.001 <= abs(value) < 1000 else f"{value:.4g}"


def is_share(name: str) -> bool:
    """Whether a metric is a share of 1, to be shown as a percentage."""
    return name.rpartition("/")[2] in ("acc", "accuracy") or "/acc_" in name


def moment(text: object) -> str:
    """A time in records' form, ISO 8601, as `2026-01-31 09:30 UTC`; empty if it is none."""
    try:
        at = datetime.fromisoformat(str(text))
    except ValueError:
        return ""
    return f"{at.astimezone(UTC) if at.tzinfo else at:%Y-%m-%d %H:%M} UTC"


def badge(state: str) -> Markup:
    """A run's state as a coloured word."""
    return element(
        "span", STATES.get(state, state), class_=f"badge {state if state in STATES else 'unknown'}"
    )


def commit(story_git: object) -> str:
    """Which state of the code: a commit's first characters, and whether files were changed since."""
    if not isinstance(story_git, dict) or not story_git.get("commit"):
        return ""
    return str(story_git["commit"])[:10] + (" with changes" if story_git.get("changed") else "")


def summary(story: RunStory) -> Markup:
    """What was trained on what, for how long, and what came out: a paragraph or two."""
    return join(
        element("p", [f"{text} " for text in (_task(story), _result(story)) if text], class_="lead"),
        element("p", _circumstances(story), class_="dim") if _circumstances(story) else None,
    )


def _task(story: RunStory) -> str:
    model, data, optim = story.class_of("model"), story.class_of("data"), story.class_of("optim")
    if not model or not data:
        return "The configuration of this run is missing or damaged."
    size = f" with {story.parameters:,} parameters" if story.parameters else ""
    images = story.group("data").get("input_shape")
    shape = f" ({'×'.join(map(str, images))} images)" if isinstance(images, list) else ""
    classes = story.group("data").get("num_classes")
    task = f"to tell {classes} classes of {data}{shape} apart" if classes else f"on {data}{shape}"
    rate = story.group("optim").get("lr")
    how = f"{optim}" + (f" (learning rate {rate:g})" if isinstance(rate, int | float) else "")
    if schedule := str(story.choices.get("scheduler") or ""):
        how += f" and a {schedule} schedule"
    epochs = f"{story.epochs} epoch{'s' * (story.epochs != 1)}" if story.epochs else ""
    span = f" in {duration(story.duration)}" if story.duration is not None else ""
    verb = "trained" if story.state in ("done", "pruned") else "was being trained"
    length = f"for {epochs}{span}" if epochs else span.strip()
    return f"{_a(model)} {model}{size} {verb} {task}, by {how}, {length}".rstrip(", ") + "."


def _a(noun: str) -> str:
    """The article, by how the name sounds: an MLP, a CNN."""
    spelled = noun[:2].isupper()
    return "An" if noun[:1].upper() in ("AEFHILMNORSX" if spelled else "AEIO") else "A"


def _result(story: RunStory) -> str:
    error = str(story.status.get("error") or "")
    if story.state == "failed":
        return "It failed." if error else "It failed; the reason is not on record."
    if story.state == "interrupted":
        return f"It was interrupted{f' ({error})' if error else ''}, and can go on where it stopped."
    if story.state == "running":
        progress = story.status.get("progress")
        at = progress if isinstance(progress, dict) else {}
        epoch = f" at epoch {at['epoch']} of {at['epochs']}" if at.get("epoch") and at.get("epochs") else ""
        return f"It was still running{epoch} when this page was written."
    if story.state == "pruned":
        return "The search gave it up early, so that it was not tested."
    if story.state != "done":
        return "What became of it is not on record."
    share, count = story.metrics.get("test/acc"), story.metrics.get("test/images")
    if share is None:
        return ""
    if not math.isfinite(share):
        return f"The test accuracy is {share:g}."
    text = f"Of {count:,.0f} test images" if count else "Of the test images"
    text += f" it classifies {percent(share)} correctly"
    if (interval := accuracy_interval(story)) is not None:
        low, high = interval
        text += f" (95 % interval {100 * low:.2f} to {percent(high)})"
    return text + "."


def _circumstances(story: RunStory) -> str:
    started = moment(story.status.get("started"))
    versions = story.status.get("versions")
    known = versions if isinstance(versions, dict) else {}
    ranks = story.status.get("ranks")
    precision, accelerator = (story.group("trainer").get(key) for key in ("precision", "accelerator"))
    parts = [
        f"Started {started}" if started else "",
        f"on {story.status['host']}" if story.status.get("host") else "",
        f"{accelerator}" + (f" × {ranks}" if isinstance(ranks, int) and ranks > 1 else "")
        if accelerator
        else "",
        f"precision {precision}" if precision else "",
        f"seed {story.config['seed']}" if "seed" in story.config else "",
        f"commit {commit(story.status.get('git'))}" if commit(story.status.get("git")) else "",
        *(f"{name} {known[name]}" for name in ("torch", "lightning", "python") if name in known),
    ]
    return " · ".join(part for part in parts if part)
