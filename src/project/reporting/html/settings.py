"""A run's configuration: what was asked for first, all of it last."""

from typing import Any

from project.reporting.html.html import Markup, element, join
from project.reporting.html.reading import RunStory
from project.runs.hparam_diff import text
from project.runs.results import ClassName, flatten
from project.runtime.secrets import redact, redact_text

GROUPS = ("model", "data", "augment", "optim", "scheduler", "loss", "trainer")
HIDDEN = (
    *("_target_", "_partial_", "_convert_", "_recursive_", "input_shape", "num_classes"),
    *("path", "prepared", "default_root_dir"),
)
ROOT = ("seed", "monitor", "mode", "compile", "channels_last", "deterministic", "decay_norms_and_biases")
IDLE: dict[str, dict[str, Any]] = {
    "trainer": {"num_nodes": 1, "max_steps": -1, "accumulate_grad_batches": 1, "check_val_every_n_epoch": 1}
    | {f"limit_{split}_batches": 1.0 for split in ("train", "val", "test", "predict")}
    | {"overfit_batches": 0, "num_sanity_val_steps": 0, "strategy": "auto", "profiler": None},
    "data": {"augment": ClassName("project.datamodules.loading.augmentation.Augmentation"), "fold": 0},
}
"""Values that say nothing, for they change nothing."""
COPIES = ("data.seed", "data.channels_last", "augment.erase_probability")
"""Keys that follow from others."""
MISSING = object()
MOST = 12
"""Values of a group that are shown; the whole configuration has the others."""


def settings(story: RunStory) -> Markup:
    """The command line's words, the values of each group, the whole configuration and the environment."""
    if not story.config:
        return element("p", "The configuration is missing or damaged.", class_="empty")
    cards = [_card(story, group) for group in GROUPS if story.group(group)]
    general = {key: story.config[key] for key in ROOT if story.config.get(key) not in (None, False)}
    cards.append(_group_card("run", "", general))
    return join(
        element("h3", "Asked for on the command line"),
        words(story.overrides),
        element("h3", "What that means"),
        element("div", cards, class_="cards settings"),
        element(
            "details",
            element("summary", "The whole configuration"),
            element("pre", redact_text(story.config_text)),
        ),
    )


def words(overrides: list[str]) -> Markup:
    """Overrides, one beside the other."""
    if not overrides:
        return element("p", "Nothing: this is what train.py does by itself.", class_="dim")
    items = [element("li", element("code", redact_text(word))) for word in overrides]
    return element("ul", items, class_="words")


def _card(story: RunStory, group: str) -> Markup:
    node = story.group(group)
    values = {
        key: value
        for key, value in flatten({key: value for key, value in node.items() if key not in HIDDEN}).items()
        if value not in (None, False)
        and key.rpartition(".")[2] not in HIDDEN
        and f"{group}.{key}" not in COPIES
        and not (group == "data" and key.startswith("augment."))
        and IDLE.get(group, {}).get(key, MISSING) != value
        and (group != "augment" or value)
    }
    option = story.choices.get(group) or ""
    name = story.class_of(group)
    if name == "Trainer" or group == "augment":
        name = ""
    if group == "augment" and option == "none":
        values = {}
    told = name.lower() == option.replace("_", "") or not option
    title = name if told else f"{option} ({name})" if name else option
    return _group_card(group, title, values)


def _group_card(group: str, title: str, values: dict[str, Any]) -> Markup:
    rows = [
        (key, value.rpartition(".")[2] if isinstance(value, ClassName) else text(redact({key: value})[key]))
        for key, value in values.items()
        if value not in ([], {}, "")
    ]
    shown = [
        element("div", element("dt", key), element("dd", value if len(value) < 60 else value[:58] + "…"))
        for key, value in rows[:MOST]
    ]
    more = element("p", f"and {len(rows) - MOST} more", class_="note") if len(rows) > MOST else None
    heading = element("h4", element("span", group, class_="dim"), " ", title)
    return element("section", heading, element("dl", shown), more, class_="card")


def environment(status: dict[str, Any]) -> Markup:
    """Where a run took place: machine, versions, processes, the code's state."""
    versions = status.get("versions") if isinstance(status.get("versions"), dict) else {}
    git = status.get("git") if isinstance(status.get("git"), dict) else {}
    assert versions is not None
    assert git is not None
    rows = {
        "machine": status.get("host"),
        "processes": status.get("ranks"),
        "SLURM job": status.get("slurm_job"),
        "started": status.get("started"),
        "finished": status.get("finished"),
        "commit": git.get("commit"),
        "files changed since": ("yes" if git["changed"] else "no") if "changed" in git else None,
        **versions,
    }
    body = [
        element("tr", element("th", name, scope="row"), element("td", str(value)))
        for name, value in rows.items()
        if value not in (None, "")
    ]
    if not body:
        return element("p", "Nothing is on record.", class_="empty")
    return element("div", element("table", element("tbody", body), class_="facts"), class_="scroll")
