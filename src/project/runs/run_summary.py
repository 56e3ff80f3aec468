"""Summaries of a run on the terminal: facts before training, results after training."""

import shlex
from typing import TYPE_CHECKING, Any

from project.runs.run_folder import RunFolder
from project.runtime.console import Column, fact_block, table
from project.runtime.text import duration

if TYPE_CHECKING:
    import lightning as L
    from torch import nn


def start_summary(config: dict[str, Any], network: "nn.Module", trainer: "L.Trainer", run: RunFolder) -> str:
    """Return a line each for the model, data, optimizer, length and folder of a run."""
    data, optim, limits = config["data"], config["optim"], config["trainer"]
    shape = "×".join(str(side) for side in data["input_shape"])
    parameters = sum(parameter.numel() for parameter in network.parameters())
    devices = f"{trainer.world_size} × " if trainer.world_size > 1 else ""
    length = [f"{limits['max_epochs']} epochs"] if limits["max_epochs"] and limits["max_epochs"] > 0 else []
    length += [f"{limits['max_steps']:,} steps"] if limits["max_steps"] > 0 else []
    length += [f"{limits['max_time']}"] if limits["max_time"] else []
    facts = {
        "model": f"{_class_name(config['model'])}, {parameters:,} parameters",
        "data": f"{_class_name(data)}, {shape}, {data['num_classes']} classes, "
        f"batches of {data.get('batch_size', '–')}",
        "optim": f"{_class_name(optim)} lr {optim.get('lr', '–')}, "
        f"{_class_name(config['scheduler'])} schedule, {_class_name(config['loss'])}",
        "run": f"{' or '.join(length) or 'no limit'} on {devices}{trainer.strategy.root_device.type}, "
        f"{limits['precision']}, seed {config['seed']}",
        "folder": run.shown,
    }
    if config["ckpt_path"]:
        facts["from"] = str(config["ckpt_path"])
    return fact_block(facts) + "\n"


def end_summary(metrics: dict[str, float], weights: str, run: RunFolder, seconds: float) -> str:
    """Return a table of a run's metrics, the run folder, and the command that shows its curves."""
    rows = [
        [split, *(f"{metrics[f'{split}/{name}']:.4f}" for name in ("loss", "acc")), ""]
        for split in ("val", "test")
        if f"{split}/acc" in metrics
    ]
    if "test/images" in metrics:
        rows[-1][-1] = f"of {metrics['test/images']:,.0f} images"
    columns: list[str | Column] = ["", "loss", "accuracy", Column(f"({weights} weights)", right=False)]
    return "\n".join(
        [
            "",
            table(columns, rows, indent=2),
            "",
            f"{duration(seconds)} in {run.shown}",
            f"show curves: tensorboard --logdir {shlex.quote(run.shown)}",
        ]
    )


def _class_name(node: dict[str, Any]) -> str:
    return node["_target_"].rpartition(".")[2]
