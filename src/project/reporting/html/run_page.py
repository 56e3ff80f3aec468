"""Page content for one run."""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from project.errors import InputError
from project.reporting.html.charts import run_charts
from project.reporting.html.evaluations import read_evaluations, read_exports
from project.reporting.html.images import run_gallery
from project.reporting.html.tables import Cell, Table, format_metric, format_time, number_cell, points_table
from project.reporting.run_data import RunData, as_mapping
from project.runs.comparison import compare
from project.runs.intervals import accuracy_interval
from project.runs.metric_names import is_of_split, parse
from project.runs.provenance import now
from project.runs.results import ClassName, flatten, format_value, is_number, natural_sort_key
from project.runs.sweep_jobs import SUCCEEDED, config_flags
from project.runtime.process import as_called
from project.runtime.secrets import REDACTED, redact, redact_text
from project.runtime.text import duration, plural, shorten

GROUPS = ("model", "data", "augment", "optim", "scheduler", "loss", "trainer")
MAX_METRIC_CARDS = 9
GENERAL = ("seed", "monitor", "mode", "compile", "channels_last", "deterministic")
HIDDEN = frozenset(
    ("_target_", "_partial_", "_convert_", "_recursive_", "input_shape", "num_classes", "path", "image_cache")
)
TRAINER_KEYS = (
    *("max_epochs", "max_time", "accelerator", "devices", "num_nodes", "precision", "gradient_clip_val"),
    *("accumulate_grad_batches", "limit_train_batches"),
)
"""Keys of the Trainer shown as a card; the text of the configuration shows all keys."""
MAX_SETTINGS, MAX_VALUE_LENGTH = 12, 60
TRAIN = "python scripts/train.py"
NOT_REPEATED = ("resume=", "ckpt_path=", "hydra.run.dir=", "hydra.sweep.dir=", "hydra.mode=")
"""Overrides that concern the existing run folder, not the experiment."""
COMMIT = re.compile(r"[0-9a-f]{7,64}")
LOG_PREFIX = re.compile(r"^\[[\d\-:, ]+\]\[INFO\]\[[\w.]+\] ")
MAX_LOG_LINES = 80
MAX_OTHERS = 40
"""Maximum number of runs of the same experiment to read, latest first."""
MAX_ROWS = 12
RESULTS = {
    "failed": "The run failed.",
    "interrupted": "The run was interrupted and can be continued.",
    "pruned": "The search pruned the run before its test.",
    "paused": "The search paused the run before its last epoch, and continued others.",
}


class Section(NamedTuple):
    """Section of a page, rendered by a macro of sections.html; omitted if the content is empty."""

    title: str
    macro: str
    content: Any


def run_page(folder: Path, page: Path, others: Sequence[str] | None) -> dict[str, Any]:
    """Return the template variables for the page of a run.

    Args:
        folder: run folder.
        page: folder of the page; links are relative to it.
        others: folders of runs to compare with; None: the runs next to this one.
    """
    data = RunData(folder)
    name = str(data.status.get("name") or data.config.get("name") or folder.name)
    error = str(data.status.get("error") or "")
    is_done = data.state in SUCCEEDED
    commands = reproduction_commands(
        data.overrides, data.status.get("git"), data.command, Path(data.run.shown), is_done=is_done
    )
    return {
        "title": f"{name}: {data.state}",
        "kind": "Run",
        "states": [data.state],
        "heading": name,
        "folder": data.run.shown,
        "written": format_time(now()),
        "lead": describe_run(data),
        "provenance_line": provenance_line(data.status),
        "cards": run_cards(data),
        "error": redact_text(error),
        "sections": [
            Section("Metrics", "table", _other_metrics(data)),
            Section("Curves", "curves", run_charts(data)),
            Section("Evaluation", "evaluations", read_evaluations(folder)),
            Section("Images", "gallery", run_gallery(folder)),
            Section("Exports", "tables", read_exports(folder)),
            Section("Comparison", "table", _comparison(data, page, others)),
            Section("Configuration", "settings", run_settings(data)),
            Section("How to reproduce", "reproduction", commands),
            Section("Environment", "environment", environment_rows(data.status)),
            Section("Log", "log", _log(data)),
        ],
    }


def _log(data: RunData) -> dict[str, Any] | None:
    lines = [LOG_PREFIX.sub("", line.rstrip()) for line in redact_text(data.log).splitlines() if line.strip()]
    if not lines:
        return None
    title = "Log" if len(lines) <= MAX_LOG_LINES else f"Last {MAX_LOG_LINES} lines of the log"
    return {"title": title, "text": "\n".join(lines[-MAX_LOG_LINES:]), "is_open": data.state == "failed"}


def run_cards(data: RunData) -> list[tuple[str, str, str]]:
    """Return label, value and note of the key numbers: metrics, epochs, duration, parameters."""
    metrics, shown = data.metrics, metric_order(data)[:MAX_METRIC_CARDS]
    cards = [(name, format_metric(metrics[name]), _metric_note(data, name)) for name in shown]
    if not metrics and (place := data.best_index()) is not None:
        value = data.series[data.monitor].values[place]
        cards.append((data.monitor, format_metric(value), "best so far"))
    if data.num_epochs:
        weights = data.status.get("weights")
        cards.append(("epochs", str(data.num_epochs), f"{weights} weights" if weights and metrics else ""))
    if data.duration_s is not None:
        pace = f"{duration(data.duration_s / data.num_epochs)} per epoch" if data.num_epochs else ""
        cards.append(("duration", duration(data.duration_s), pace))
    if data.num_parameters:
        cards.append(("parameters", f"{data.num_parameters:,}", data.class_name_of("model")))
    return cards


def metric_order(data: RunData) -> list[str]:
    """Return the names of all metrics of a run: the monitored one on the test split first, then itself."""
    shown = [name for name in data.metrics if parse(name).kind != "images"]
    tested = [name for name in shown if is_of_split(name, "test")]
    monitored = parse(data.monitor).kind
    same = [name for name in tested if parse(name).kind == monitored]
    validated = [name for name in shown if is_of_split(name, "val")]
    wanted = dict.fromkeys([*same, data.monitor, *tested, *validated, *shown])
    return [name for name in wanted if name in shown]


def _metric_note(data: RunData, name: str) -> str:
    """Return the interval of an accuracy, and the number of cases of a metric."""
    count, interval = data.metrics.get(f"{parse(name).split}/images"), accuracy_interval(data.metrics, name)
    parts = [" to ".join(map(format_metric, interval))] if interval else []
    parts += [f"{count:,.0f} {data.case_name}"] if count and math.isfinite(count) else []
    return ", ".join(parts)


def _other_metrics(data: RunData) -> Table | None:
    """Return a table of the metrics beyond the cards."""
    rows = [
        [Cell(name), number_cell(data.metrics[name], format_metric)]
        for name in metric_order(data)[MAX_METRIC_CARDS:]
    ]
    return Table("All other metrics, at the weights of the test", ["metric", "value"], rows) if rows else None


def describe_run(data: RunData) -> str:
    """Return sentences about model, data, optimizer, duration and result."""
    model, dataset, optimizer = (data.class_name_of(group) for group in ("model", "data", "optim"))
    if not model or not dataset:
        return f"The configuration of this run is missing or damaged. {_describe_result(data)}"
    size = f" with {data.num_parameters:,} parameters" if data.num_parameters else ""
    rate = data.group("optim").get("lr")
    text = f"{model}{size}, trained on {dataset} with {optimizer}"
    text += f" (learning rate {rate:g})" if is_number(rate) else ""
    text += f" for {plural(data.num_epochs, 'epoch')}" if data.num_epochs else ""
    text += f" in {duration(data.duration_s)}" if data.duration_s is not None else ""
    return f"{text}. {_describe_result(data)}".rstrip()


def _describe_result(data: RunData) -> str:
    if data.state == "running":
        progress = as_mapping(data.status.get("progress"))
        at = (
            " at epoch {epoch} of {epochs}".format(**progress)
            if progress.keys() >= {"epoch", "epochs"}
            else ""
        )
        return f"The run was still running{at} when this page was written."
    if data.state != "done":
        return RESULTS.get(data.state, "The state of the run is not recorded.")
    names = metric_order(data)
    if not names:
        return ""
    first, count = names[0], data.metrics.get(f"{parse(names[0]).split}/images")
    split, kind = parse(first)
    title = f"Test {'accuracy' if kind == 'acc' else kind}" if split == "test" else first
    text = f"{title} {format_metric(data.metrics[first])}"
    text += f" on {count:,.0f} {data.case_name}" if count and math.isfinite(count) else ""
    interval = accuracy_interval(data.metrics, first)
    text += f" (95 % interval {' to '.join(map(format_metric, interval))})" if interval else ""
    is_other = data.monitor in data.metrics and data.monitor != first
    return text + (f"; {data.monitor} {format_metric(data.metrics[data.monitor])}." if is_other else ".")


def provenance_line(record: Mapping[str, Any]) -> str:
    """Return start time, host, commit and versions in one line, from a run's status or a sweep's record."""
    versions, git = as_mapping(record.get("versions")), as_mapping(record.get("git"))
    changed = " with changes" if git.get("changed") else ""
    parts = [f"Started {started}" if (started := format_time(record.get("started"))) else ""]
    places = [str(record[key]) for key in ("host", "device") if record.get(key)]
    parts += [f"on {', '.join(places)}" if places else ""]
    parts += [f"commit {str(git['commit'])[:10]}{changed}" if git.get("commit") else ""]
    parts += [f"{name} {versions[name]}" for name in ("torch", "lightning", "python") if name in versions]
    return " · ".join(filter(None, parts))


def _comparison(data: RunData, page: Path, others: Sequence[str] | None) -> Table | None:
    """Return a ranking of the run and others; None if no other run has finished."""
    folder = data.run.path
    if others is None:
        folders, names = _siblings(folder), f"the others in {folder.absolute().parent.name}"
    else:
        folders, names = [Path(other) for other in others], ", ".join(others)
    try:
        ranked = compare([folder, *folders], data.monitor or None, each=True)
    except InputError:  # no run has finished, or they share no metric
        return None
    if ranked.count < 2:
        return None
    points = ranked.points
    shown = [
        point
        for rank, point in enumerate(points)
        if rank < MAX_ROWS or point.runs[0].folder.resolve() == folder.resolve()
    ]
    caption = f"This run and {names}, by {ranked.by}"
    caption += f": the best of {len(points)}" if len(shown) < len(points) else ""
    return points_table(replace(ranked, points=shown), page, caption, own=[folder])


def _siblings(folder: Path) -> list[Path]:
    """Return the folders of the latest other runs of the same experiment or sweep."""
    found = [file.parent for file in folder.absolute().parent.glob("*/status.json")]
    others = [
        other for other in found if (other / "config.yaml").exists() and other.resolve() != folder.resolve()
    ]
    return sorted(others, key=lambda other: natural_sort_key(other.name))[-MAX_OTHERS:]


def run_settings(data: RunData) -> dict[str, Any]:
    """Return the overrides of a run, cards of its configuration groups, and the configuration as text."""
    cards = [_group_card(data, group) for group in GROUPS if data.group(group)]
    general = {key: data.config[key] for key in GENERAL if key in data.config}
    if data.config:
        cards.append(_card("run", "", general))
    overrides = [redact_text(word) for word in data.overrides]
    return {"overrides": overrides, "cards": cards, "text": redact_text(data.config_text)}


def _group_card(data: RunData, group: str) -> dict[str, Any]:
    values = {
        key: value
        for key, value in flatten(data.group(group)).items()
        if HIDDEN.isdisjoint(key.split("."))
        and not (group == "data" and key.startswith("augment"))
        and (group != "trainer" or key in TRAINER_KEYS)
    }
    option, name = data.choices.get(group, ""), data.class_name_of(group)
    is_same = name.lower() == option.replace("_", "")
    title = name if is_same or not option else f"{option} ({name})" if name else option
    return _card(group, title, values)


def _card(group: str, title: str, values: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for key, value in redact(dict(values)).items():
        if value not in (None, False, [], {}, ""):
            shown = value.rpartition(".")[2] if isinstance(value, ClassName) else format_value(value)
            rows.append((key, shorten(shown, MAX_VALUE_LENGTH)))
    num_hidden = max(0, len(rows) - MAX_SETTINGS)
    return {"group": group, "title": title, "rows": rows[:MAX_SETTINGS], "num_hidden": num_hidden}


def environment_rows(status: Mapping[str, Any]) -> dict[str, str]:
    """Return host, processes, times, commit and versions of a run or a sweep, by label."""
    git = as_mapping(status.get("git"))
    rows = {
        "machine": status.get("host"),
        "device": status.get("device"),
        "processes": status.get("ranks"),
        "SLURM job": status.get("slurm_job"),
        "started": status.get("started"),
        "finished": status.get("finished"),
        "commit": git.get("commit"),
        "uncommitted changes": ("yes" if git["changed"] else "no") if "changed" in git else None,
        **as_mapping(status.get("versions")),
    }
    return {name: str(value) for name, value in rows.items() if value not in (None, "")}


def _commit_of(git: Any) -> str:
    """Return the commit, which is pasted into a shell; empty if it is missing or invalid."""
    commit = as_mapping(git).get("commit")
    return commit if isinstance(commit, str) and COMMIT.fullmatch(commit) else ""


def training_commands(
    overrides: Sequence[str], git: Any, command: Sequence[str], *, is_sweep: bool = False
) -> list[str]:
    """Return the commands that check the code out and train as before, as called by the user.

    Args:
        overrides: overrides of the run or the sweep.
        git: recorded state of the code.
        command: words of the command that started the run or the sweep.
        is_sweep: repeat the sweep.
    """
    repeated = [word for word in overrides if not word.startswith(NOT_REPEATED)]
    kept = list(map(redact_text, [*config_flags(command), *repeated]))
    train = " ".join(["uv run", TRAIN, *(["-m"] if is_sweep else []), *map(shlex.quote, kept)])
    commit = _commit_of(git)
    return list(map(as_called, [*([f"git checkout {commit}"] if commit else []), "uv sync", train]))


def reproduction_commands(
    overrides: Sequence[str],
    git: Any,
    command: Sequence[str],
    folder: Path,
    *,
    is_sweep: bool = False,
    is_done: bool = True,
) -> dict[str, Any]:
    """Return commands that repeat, continue and inspect a run or a sweep, and warnings about them.

    Args:
        overrides: overrides of the run or the sweep.
        git: recorded state of the code.
        command: words of the command that started the run or the sweep.
        folder: folder as the user types it.
        is_sweep: the folder is that of a sweep.
        is_done: nothing is left to train.
    """
    place = shlex.quote(str(folder))
    warnings = [] if _commit_of(git) else ["The commit of the code is not recorded."]
    if as_mapping(git).get("changed"):
        warnings.append("The code had uncommitted changes: the commit alone may give another result.")
    if any(REDACTED in redact_text(word) for word in overrides):
        warnings.append(f"{REDACTED} stands for a secret; give it as '${{oc.env:NAME}}'.")
    if any(word.startswith("ckpt_path=") for word in overrides):
        warnings.append("Training began with a checkpoint of another run (ckpt_path in the configuration).")
    repeat = training_commands(overrides, git, command, is_sweep=is_sweep)
    commands = {f"Repeat this {'sweep' if is_sweep else 'run'}": repeat}
    if not is_done:
        commands["Continue"] = [f"{TRAIN} resume={place}"]
    elif not is_sweep:
        commands["Train longer"] = [f"{TRAIN} resume={place} trainer.max_epochs=…"]
    look = [f"python scripts/evaluate.py run={place}", f"tensorboard --logdir {place}"]
    look += [f"python scripts/compare.py {place}"] if is_sweep else []
    commands["Inspect"] = look
    shown = {title: list(map(as_called, lines)) for title, lines in commands.items()}
    return {"commands": shown, "warnings": warnings}
