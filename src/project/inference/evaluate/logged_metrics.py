"""Evaluation of a run of any task: metrics that its steps log, and predictions where they fit into cells."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.model_helpers import is_overridden

from project.errors import InputError
from project.inference.evaluate import output_files
from project.inference.evaluate.options import Member, Options
from project.inference.load_run import TrainedModule, explain_lightning_errors, load_module
from project.inference.options import require_accelerator
from project.inference.prediction_columns import DescribesPredictions, PredictionCollector
from project.runs.metric_names import parse
from project.runs.provenance import now, versions
from project.runtime.console import Column, table

STEPS = {"test": ("test_step", "test_dataloader"), "val": ("validation_step", "val_dataloader")}
"""Methods of module and data module that the evaluation of a split calls."""


def evaluate_logged(options: Options, members: Sequence[Member]) -> None:
    """Evaluate runs of any task one by one; write and print the metrics that they log.

    Raises:
        InputError: the task lacks what the options need.
    """
    if len(members) > 1 and options.combine != "none":
        combined = options.combine or "ensemble"
        raise InputError(
            f"combine={combined}: combines image classifiers only; give combine=none to evaluate the runs "
            "one by one"
        )
    if options.tta is not None:
        raise InputError(f"tta={options.tta}: available for image classifiers only; leave it out")
    require_accelerator(options.accelerator)
    for member in members:
        name = output_files.evaluation_name(options.split, options.data, None, member.weights)
        target = options.output or member.run.path / output_files.FOLDER / name
        if options.output is not None and len(members) > 1:
            target = options.output / f"{member.run.path.name}-{name}"
        with output_files.replacing_folder(target, is_given=options.output is not None) as folder:
            trained = load_module(member.run, member.weights, options.data_overrides)
            collected = _collector(trained, options)
            metrics, trainer = measure(trained, options, [collected] if collected else [])
            content = _to_json(options, trained, trainer, metrics)
            output_files.write_json(folder / output_files.RESULT, content)
            files = [output_files.RESULT]
            if collected is not None and (columns := collected.table(options.split)):
                output_files.write_columns(folder / output_files.PREDICTIONS, columns)
                files.append(output_files.PREDICTIONS)
            text = _render(options, trained, trainer, metrics)
        here = Path.cwd()
        shown = target.relative_to(here) if target.is_relative_to(here) else target
        print(f"{member.shown}\n{text}\n\n{shown}: {', '.join(files)}", flush=True)


def _collector(trained: TrainedModule, options: Options) -> PredictionCollector | None:
    """Return a collector of predictions; None if they are not wanted, or not in cells.

    Raises:
        InputError: `predictions=true`, but the module does not describe its predictions.
    """
    if options.predictions is False:
        return None
    if isinstance(trained.module, DescribesPredictions):
        return PredictionCollector(trained)
    if options.predictions:
        task = type(trained.module).__name__
        raise InputError(
            f"predictions=true: {task} has no prediction_columns and target_columns; add them, or use "
            "scripts/predict.py"
        )
    return None


def measure(
    trained: TrainedModule, options: Options, callbacks: Sequence[L.Callback] = ()
) -> tuple[dict[str, float], L.Trainer]:
    """Run Lightning's test, or validation for `split=val`, and return the logged metrics and the trainer.

    Module and data module restore their state from the checkpoint, and random numbers start from the seed of
    the run.

    Raises:
        InputError: the module has no step for the split, the data module no loader, or nothing was logged.
    """
    require_split(trained, options.split)
    changes: dict[str, Any] = {} if options.accelerator is None else {"accelerator": options.accelerator}
    trainer = trained.trainer(callbacks=list(callbacks), **changes)
    L.seed_everything(trained.config["seed"], workers=True, verbose=False)
    run = trainer.test if options.split == "test" else trainer.validate
    with explain_lightning_errors():
        run(
            trained.module,
            datamodule=trained.datamodule,
            ckpt_path=str(trained.checkpoint),
            weights_only=True,
            verbose=False,
        )
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if not metrics:
        task, step = type(trained.module).__name__, STEPS[options.split][0]
        raise InputError(f"split={options.split}: {step} of {task} logs no metric; log one with self.log")
    return metrics, trainer


def require_split(trained: TrainedModule, split: str) -> None:
    """Raise an `InputError` if a split cannot be evaluated with Lightning's test or validation."""
    task, data = type(trained.module).__name__, type(trained.datamodule).__name__
    possible = [
        name
        for name, (step, loader) in STEPS.items()
        if is_overridden(step, trained.module) and is_overridden(loader, trained.datamodule)
    ]
    remedy = f"choose split={' or '.join(possible)}" if possible else "add one to evaluate this run"
    if split not in STEPS:
        raise InputError(f"split={split}: available for image classifiers only; {remedy}")
    step, loader = STEPS[split]
    if not is_overridden(step, trained.module):
        raise InputError(f"split={split}: {task} has no {step}; {remedy}")
    if not is_overridden(loader, trained.datamodule):
        raise InputError(f"split={split}: {data} has no {loader}; {remedy}")


def _to_json(
    options: Options, trained: TrainedModule, trainer: L.Trainer, metrics: Mapping[str, float]
) -> dict[str, Any]:
    recorded = trained.run.read_status().get("metrics")
    recorded = recorded if isinstance(recorded, dict) else {}
    return {
        "run": trained.run.shown,
        "checkpoint": trained.checkpoint.name,
        "combined": None,
        "split": options.split,
        "data": type(trained.datamodule).__name__,
        "overrides": [*options.data, *options.paths],
        "device": trainer.strategy.root_device.type,
        "precision": str(trainer.precision),
        "figures": {name: {"value": value} for name, value in metrics.items()},
        "run_figures": {name: recorded[name] for name in metrics if name in recorded},
        "created": now(),
        "versions": dict(versions()),
    }


def _render(
    options: Options, trained: TrainedModule, trainer: L.Trainer, metrics: Mapping[str, float]
) -> str:
    facts = [
        trained.checkpoint.name,
        f"{type(trained.datamodule).__name__} {options.split}",
        trainer.strategy.root_device.type,
        str(trainer.precision),
    ]
    counts = {name for name in metrics if parse(name).kind == "images"}
    rows = [[name, f"{value:,.0f}" if name in counts else f"{value:.4f}"] for name, value in metrics.items()]
    return f"{', '.join(facts)}\n\n{table([Column('metric', right=False), 'value'], rows)}"
