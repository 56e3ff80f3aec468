"""What a run says on the screen before and after training."""

import shlex
from typing import Any

import lightning as L
from torch import nn

from project.runs.run_folder import RunFolder
from project.runtime.text import duration


def opening(config: dict[str, Any], network: nn.Module, trainer: L.Trainer, run: RunFolder) -> str:
    """Say in a few lines what is being run."""
    data, optim, limits = config["data"], config["optim"], config["trainer"]
    shape = "×".join(str(side) for side in data["input_shape"])
    parameters = sum(parameter.numel() for parameter in network.parameters())
    devices = f"{trainer.world_size} × " if trainer.world_size > 1 else ""
    length = [f"{limits['max_epochs']} epochs"] if limits["max_epochs"] and limits["max_epochs"] > 0 else []
    length += [f"{limits['max_steps']:,} steps"] if limits["max_steps"] > 0 else []
    length += [f"{limits['max_time']}"] if limits["max_time"] else []
    rows = {
        "model": f"{_short(config['model'])}, {parameters:,} parameters",
        "data": f"{_short(data)}, {shape}, {data['num_classes']} classes, "
        f"batches of {data.get('batch_size', '–')}",
        "optim": f"{_short(optim)} lr {optim.get('lr', '–')}, {_short(config['scheduler'])} schedule, "
        f"{_short(config['loss'])}",
        "run": f"{' or '.join(length) or 'no limit'} on {devices}{trainer.strategy.root_device.type}, "
        f"{limits['precision']}, seed {config['seed']}",
        "folder": run.shown,
    }
    if config["ckpt_path"]:
        rows["from"] = str(config["ckpt_path"])
    return "\n".join(f"{name:>8}  {text}" for name, text in rows.items()) + "\n"


def closing(metrics: dict[str, float], weights: str, run: RunFolder, seconds: float) -> str:
    """Show the results as a table, where the run lies and how to look at it."""
    rows = [f"{'':>10}{'loss':>10}{'accuracy':>10}   ({weights} weights)"]
    rows += [
        f"{split:>10}{metrics[f'{split}/loss']:10.4f}{metrics[f'{split}/acc']:10.4f}"
        for split in ("val", "test")
        if f"{split}/acc" in metrics
    ]
    if "test/images" in metrics:
        rows[-1] += f"   of {metrics['test/images']:,.0f} images"
    return "\n".join(
        [
            "",
            *rows,
            "",
            f"{duration(seconds)} in {run.shown}",
            f"look at it: tensorboard --logdir {shlex.quote(run.shown)}",
        ]
    )


def _short(node: dict[str, Any]) -> str:
    return node["_target_"].rpartition(".")[2]
