"""Summaries of a run on the terminal: facts before training, results after training."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from project.runs.metric_names import MetricName, parse
from project.runs.run_folder import RunFolder
from project.runtime.console import Column, fact_block, table
from project.runtime.text import duration, plural

if TYPE_CHECKING:
    import lightning as L


SPLITS = ("val", "test")
TITLES = {"acc": "accuracy"}
MAX_COLUMNS = 6
OUTPUTS = {"multilabel": "label", "real": "target"}
"""Units of `data.num_classes`, by `TARGET_TYPE` of the task; otherwise `class`."""


def start_summary(
    config: dict[str, Any], module: "L.LightningModule", trainer: "L.Trainer", run: RunFolder
) -> str:
    """Return a line each for the model, data, optimizer, length and folder of a run."""
    data, limits = config["data"], config["trainer"]
    model = _class_name(config["model"] if "model" in config else config["task"])
    parameters = sum(parameter.numel() for parameter in module.parameters())
    devices = f"{trainer.world_size} × " if trainer.world_size > 1 else ""
    length = (
        [plural(limits["max_epochs"], "epoch")] if limits["max_epochs"] and limits["max_epochs"] > 0 else []
    )
    length += [f"{limits['max_steps']:,} steps"] if limits["max_steps"] > 0 else []
    length += [f"{limits['max_time']}"] if limits["max_time"] else []
    shape: list[int] = list(data.get("input_shape") or ())
    sizes = [plural(shape[0], "feature")] if len(shape) == 1 else ["×".join(map(str, shape))] if shape else []
    if count := data.get("num_classes"):
        unit = OUTPUTS.get(getattr(module, "TARGET_TYPE", ""))
        sizes += [plural(count, unit) if unit else f"{count} class{'es' * (count != 1)}"]
    sizes += [f"batches of {data['batch_size']}"] if data.get("batch_size") else []
    facts = {
        "model": f"{model}, {parameters:,} parameters",
        "data": ", ".join([_class_name(data), *sizes]),
        "optim": _optimization(config),
        "run": f"{' or '.join(length) or 'no limit'} on {devices}{trainer.strategy.root_device.type}, "
        f"{limits['precision']}, seed {config['seed']}",
        "folder": run.shown,
    }
    if config["ckpt_path"]:
        facts["from"] = str(config["ckpt_path"])
    return fact_block({name: fact for name, fact in facts.items() if fact}) + "\n"


def _optimization(config: dict[str, Any]) -> str:
    """Return optimizer, schedule and loss, as far as the run has them."""
    words = (
        [f"{_class_name(config['optim'])} lr {config['optim'].get('lr', '–')}"] if "optim" in config else []
    )
    words += [f"{_class_name(config['scheduler'])} schedule"] if "scheduler" in config else []
    words += [_class_name(config["loss"])] if "loss" in config else []
    return ", ".join(words)


def end_summary(
    metrics: dict[str, float], weights: str, run: RunFolder, status: Mapping[str, Any], cases: str = "images"
) -> str:
    """Return the metrics of a run as a table, its folder, and the command that shows its curves.

    TensorBoard names runs by their paths below the given folder, so the command has the folder above the run.

    Args:
        metrics: all, by name.
        weights: `best` or `last`: those that were evaluated.
        run: its folder.
        status: of the run; its monitored metric comes first.
        cases: word for the inputs of the test (default images).
    """
    lines = ["", _table(metrics, weights, str(status["monitor"]), cases), ""] if metrics else [""]
    lines.append(f"{duration(status['duration_s'])} in {run.shown}")
    if any(run.path.glob("events.out.tfevents.*")):
        lines.append(f"show curves: tensorboard --logdir {shlex.quote(str(Path(run.shown).parent))}")
    return "\n".join(lines)


def _table(metrics: Mapping[str, float], weights: str, monitor: str, cases: str) -> str:
    """Return a table of the metrics, with a row for each split of `SPLITS`.

    Many metrics have a row each, as do metrics whose names contain no split.
    """
    found = {parse(name): f"{value:.4f}" for name, value in metrics.items()}
    logged = dict.fromkeys(kind for split, kind in found if split in SPLITS)
    shown = [kind for kind in logged if kind != "images" and not kind.startswith("best_")]
    if not shown:
        rows = [[name, f"{metrics[name]:.4f}"] for name in sorted(metrics, key=lambda name: name != monitor)]
        return table(["metric", Column(f"({weights} weights)", right=True)], rows, indent=2)
    splits = [split for split in SPLITS if any((split, kind) in found for kind in shown)]
    monitored = parse(monitor).kind
    if len(shown) > MAX_COLUMNS:
        rows = [
            [TITLES.get(kind, kind), *(found.get(MetricName(split, kind), "") for split in splits)]
            for kind in sorted(shown, key=lambda kind: kind != monitored)
        ]
        return table([f"({weights} weights)", *splits], rows, indent=2)
    kinds = sorted(shown, key=lambda kind: (kind != "loss", kind != monitored))
    rows = [[split, *(found.get(MetricName(split, kind), "") for kind in kinds), ""] for split in splits]
    if "test/images" in metrics:
        rows[-1][-1] = f"of {metrics['test/images']:,.0f} {cases}"
    titles = [TITLES.get(kind, kind) for kind in kinds]
    return table(["", *titles, Column(f"({weights} weights)", right=False)], rows, indent=2)


def _class_name(node: dict[str, Any]) -> str:
    return node["_target_"].rpartition(".")[2]
