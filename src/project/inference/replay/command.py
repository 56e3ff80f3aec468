"""Implementation of `scripts/replay.py`: train again with checks of every layer, gradient and weight."""

import json
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor

from project.callbacks.nan_capture import BATCH, REPORT, WEIGHTS, NanCapture
from project.callbacks.training_stats import TrainingStats
from project.callbacks.visuals import TestVisuals
from project.config.instantiate import build, build_task
from project.inference.load_run import load_teacher
from project.inference.options import require_accelerator
from project.inference.run_config import read_config
from project.modules import nan_search
from project.modules.distillation import LearnsFromTeacher
from project.runs.run_folder import RunFolder
from project.runtime.atomic_files import replace_text
from project.runtime.process import silence_libraries

LEFT_OUT = (Checkpoint, ProgressBar, NanCapture, TestVisuals, TrainingStats)
"""Callbacks that change nothing in a training."""


class Finding(NamedTuple):
    """First values of a run that are not finite.

    Args:
        epoch: number of the epoch, from 0.
        batch: number of the batch in its epoch, from 0.
        step: number of optimizer steps before.
        loss: loss of the batch.
        output: first layer with such an output; None if all outputs are finite.
        gradient: first parameter with such a gradient, in the order of the backward pass.
        weight: first parameter with such values after the step.
    """

    epoch: int
    batch: int
    step: int
    loss: float | None
    output: nan_search.NonFiniteOutput | None
    gradient: str | None
    weight: str | None

    def describe(self) -> str:
        """Return a description of a few lines."""
        where = f"epoch {self.epoch}, batch {self.batch}, after {self.step} optimizer steps"
        lines = [f"    step  {where}: loss {self.loss}"]
        if self.output is not None:
            name, kind, has_finite_inputs = self.output
            inputs = "finite inputs" if has_finite_inputs else "inputs that are not finite either"
            lines.append(f"   layer  {name} ({kind}) is the first whose output is not finite, with {inputs}")
        else:
            lines.append("   layer  all outputs are finite")
        if self.gradient is not None:
            lines.append(f"gradient  {self.gradient} is the first whose gradient is not finite")
        if self.weight is not None:
            lines.append(f"  weight  {self.weight} is not finite after the step")
        return "\n".join(lines)


class ReplayEnd(Exception):  # noqa: N818 - not an error
    """End of a replay, with its finding; None if everything stayed finite."""

    def __init__(self, finding: Finding | None) -> None:
        super().__init__("replay ended")
        self.finding = finding


class FindNonFinite(Callback):
    """Ends a training after the first batch with values that are not finite, and writes batch and weights.

    Args:
        folder: of `batch.pt` and `weights.pt`, the weights before the step.
        last_step: number of optimizer steps after which the search ends.
    """

    def __init__(self, folder: Path, last_step: int) -> None:
        self.folder = folder
        self.last_step = last_step
        self._hooks = ExitStack()
        self._outputs: list[nan_search.NonFiniteOutput] = []
        self._weights: dict[str, Tensor] = {}
        self._gradient: str | None = None
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._outputs = self._hooks.enter_context(nan_search.watch_outputs(pl_module))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._outputs.clear()
        self._gradient, self._step = None, trainer.global_step
        self._weights = nan_search.snapshot(pl_module)

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is None:  # a scaler skips infinite gradients
            self._gradient = nan_search.last_non_finite_gradient(pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        weight = nan_search.first_non_finite_weight(pl_module)
        if self._outputs or self._gradient or weight or not nan_search.is_finite(loss):
            torch.save(nan_search.to_cpu(batch), self.folder / BATCH)
            torch.save(self._weights, self.folder / WEIGHTS)
            output = self._outputs[0] if self._outputs else None
            value = float(loss) if isinstance(loss, Tensor) else None
            raise ReplayEnd(
                Finding(trainer.current_epoch, batch_idx, self._step, value, output, self._gradient, weight)
            )
        if trainer.global_step >= self.last_step:
            raise ReplayEnd(None)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._hooks.close()


def replay(run: RunFolder, accelerator: str | None = None) -> int:
    """Repeat the training of a run that stopped with a NaN or infinite value, and print the first such layer.

    Args:
        run: run with the folder `nan`.
        accelerator: device [that of the run].

    Returns:
        0, or 1 if all values stayed finite.
    """
    require_accelerator(accelerator)
    silence_libraries()
    file = run.path / "nan" / REPORT
    report: dict[str, Any] = json.loads(file.read_text())
    finding = search(run, report["step"], accelerator)
    if finding is None:
        print(
            f"run={run.shown}: everything is finite until step {report['step']} (expected the NaN or "
            "infinite value of the run); repeat it on the device and with the versions of the run"
        )
        return 1
    output = None if finding.output is None else finding.output._asdict()
    found = finding._asdict() | {"output": output}
    replace_text(file, json.dumps(report | {"layer": output, "replay": found}, indent=2) + "\n")
    print(finding.describe())
    print(f"   files  {RunFolder(file.parent).shown}: {BATCH}, {WEIGHTS} (before the step), {REPORT}")
    return 0


def search(run: RunFolder, last_step: int, accelerator: str | None = None) -> Finding | None:
    """Train from the run's newest checkpoint, or from the start, until a value is not finite.

    Returns:
        None if all values are finite until optimizer step `last_step`.
    """
    config = read_config(run)
    L.seed_everything(config["seed"], workers=True, verbose=False)
    datamodule = build(config, "data")
    task = {**config["task"], "compile": False} if "compile" in config["task"] else config["task"]
    module = build_task({**config, "task": task})
    if isinstance(module, LearnsFromTeacher):
        module.set_teacher(load_teacher(module.teacher, config))
    callbacks = [
        callback for callback in build(config, "callbacks").values() if not isinstance(callback, LEFT_OUT)
    ]
    finder = FindNonFinite(run.path / "nan", last_step)
    settings = {**config["trainer"], "devices": 1, "num_nodes": 1, "strategy": "auto", "profiler": None}
    settings |= {"max_time": None, "batches_per_hook": 1, "detect_anomaly": False}
    trainer = build(
        {"trainer": settings | ({} if accelerator is None else {"accelerator": accelerator})},
        "trainer",
        callbacks=[*callbacks, finder],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        default_root_dir=str(run.path),
        plugins=[LightningEnvironment()],
    )
    newest = run.newest_checkpoint().path
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint.*")
        try:
            trainer.fit(module, datamodule, ckpt_path=newest and str(newest), weights_only=True)
        except ReplayEnd as end:
            return end.finding
    return None
