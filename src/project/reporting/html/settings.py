"""Settings of a run, its environment, and the commands that repeat or continue it."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from project.reporting.html.run_data import RunData, as_mapping
from project.runs.hparam_diff import text
from project.runs.results import ClassName, flatten
from project.runtime.secrets import REDACTED, redact, redact_text
from project.runtime.text import shorten

GROUPS = ("model", "data", "augment", "optim", "scheduler", "loss", "trainer")
GENERAL = ("seed", "monitor", "mode", "compile", "channels_last", "deterministic")
HIDDEN = frozenset(
    ("_target_", "_partial_", "_convert_", "_recursive_", "input_shape", "num_classes", "path", "image_cache")
)
TRAINER_KEYS = (
    *("max_epochs", "max_time", "accelerator", "devices", "num_nodes", "precision", "gradient_clip_val"),
    *("accumulate_grad_batches", "limit_train_batches"),
)
"""The trainer has many other keys, which are in the whole configuration."""
MAX_ROWS, MAX_VALUE_LENGTH = 12, 60
TRAIN = "python scripts/train.py"
NOT_REPEATED = ("resume=", "ckpt_path=", "hydra.run.dir=", "hydra.sweep.dir=", "hydra.mode=")
"""Overrides that belong to the existing folder."""
COMMIT = re.compile(r"[0-9a-f]{7,64}")


def run_settings(data: RunData) -> dict[str, Any]:
    """Return the overrides of a run, the values of its groups as cards, and the whole configuration."""
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
    option, name = data.choices.get(group, ""), data.class_of(group)
    is_same = name.lower() == option.replace("_", "")
    title = name if is_same or not option else f"{option} ({name})" if name else option
    return _card(group, title, values)


def _card(group: str, title: str, values: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for key, value in redact(dict(values)).items():
        if value not in (None, False, [], {}, ""):
            shown = value.rpartition(".")[2] if isinstance(value, ClassName) else text(value)
            rows.append((key, shorten(shown, MAX_VALUE_LENGTH)))
    num_hidden = max(0, len(rows) - MAX_ROWS)
    return {"group": group, "title": title, "rows": rows[:MAX_ROWS], "num_hidden": num_hidden}


def environment(status: Mapping[str, Any]) -> dict[str, str]:
    """Return machine, versions, processes and the code's state of a run or a sweep, by name."""
    git = as_mapping(status.get("git"))
    rows = {
        "machine": status.get("host"),
        "processes": status.get("ranks"),
        "SLURM job": status.get("slurm_job"),
        "started": status.get("started"),
        "finished": status.get("finished"),
        "commit": git.get("commit"),
        "uncommitted changes": ("yes" if git["changed"] else "no") if "changed" in git else None,
        **as_mapping(status.get("versions")),
    }
    return {name: str(value) for name, value in rows.items() if value not in (None, "")}


def reproduction(
    overrides: Sequence[str], git: Any, folder: Path, *, is_sweep: bool = False, is_done: bool = True
) -> dict[str, Any]:
    """Return commands that repeat, continue and inspect a run or a sweep, and what to know before."""
    commit, place = as_mapping(git).get("commit"), shlex.quote(str(folder))
    is_sound = isinstance(commit, str) and COMMIT.fullmatch(commit) is not None  # pasted into a shell
    warnings = [] if is_sound else ["The commit of the code is not on record."]
    if as_mapping(git).get("changed"):
        warnings.append("The code had uncommitted changes: this commit alone may give another result.")
    if any(REDACTED in redact_text(word) for word in overrides):
        warnings.append(f"{REDACTED} stands for a secret; give it as '${{oc.env:NAME}}'.")
    if any(word.startswith("ckpt_path=") for word in overrides):
        warnings.append("Training began with a checkpoint of another run (ckpt_path in the configuration).")
    kept = [redact_text(word) for word in overrides if not word.startswith(NOT_REPEATED)]
    train = " ".join(["uv run", TRAIN, *(["-m"] if is_sweep else []), *map(shlex.quote, kept)])
    repeat = [*([f"git checkout {commit}"] if is_sound else []), "uv sync", train]
    commands = {f"Repeat this {'sweep' if is_sweep else 'run'}": repeat}
    if not is_done:
        commands["Continue"] = [f"{TRAIN} resume={place}"]
    elif not is_sweep:
        commands["Train longer"] = [f"{TRAIN} resume={place} trainer.max_epochs=…"]
    look = [f"python scripts/evaluate.py run={place}", f"tensorboard --logdir {place}"]
    look += [f"python scripts/compare.py {place}"] if is_sweep else []
    return {"commands": commands | {"Inspect": look}, "warnings": warnings}
