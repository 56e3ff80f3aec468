"""Implementation of `scripts/evaluate.py`: load and run networks, write and print the result."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from project.errors import InputError
from project.inference import run_config
from project.inference.evaluate import ensemble, output_files
from project.inference.evaluate.forward import run_forward
from project.inference.evaluate.metrics import bootstrap_intervals, fraction_intervals
from project.inference.evaluate.options import GREEDY, Member, Options, check_networks
from project.inference.evaluate.result import LEVEL, EvaluationResult, render, render_mistakes
from project.inference.load_run import TrainedRun, load_run
from project.inference.options import require_accelerator
from project.runtime.text import plural


def evaluate(options: Options, found: tuple[list[Member], Path] | None = None) -> None:
    """Evaluate networks one by one or combined; write and print the results."""
    members, base_folder = found or check_networks(options)
    require_accelerator(options.accelerator)
    if len(members) > 1 and options.combine != "none":
        _evaluate_combined(options, members, base_folder)
        return
    for member in members:
        target = _output_folder(options, member, is_alone=len(members) == 1)
        with output_files.replacing_folder(target, is_given=options.output is not None) as folder:
            result = _evaluate_one(options, member, _load(options, member))
            text = _write(options, result, folder, target)
        print(text, flush=True)  # after writing, as a reader such as `head` may close the pipe


def _evaluate_one(options: Options, member: Member, trained: TrainedRun) -> EvaluationResult:
    tta = trained.choose_tta(options.tta)
    forward = run_forward(trained, options.split, tta, **_trainer_changes(options))
    return EvaluationResult(member.shown, trained, forward, tta)


def _evaluate_combined(options: Options, members: Sequence[Member], base_folder: Path) -> None:
    combined = options.combine or "ensemble"
    weights = "auto" if len(options.weights) > 1 else options.weights[0]
    name = output_files.evaluation_name(options.split, options.data, options.tta, weights)
    keys = [str(member.run.path.absolute()) + member.weights for member in members]
    is_greedy = options.ensemble == GREEDY
    name = output_files.combined_name(
        name, f"greedy_{combined}_from" if is_greedy else f"{combined}_of", keys
    )
    target = options.output or base_folder / output_files.FOLDER / name
    with output_files.replacing_folder(target, is_given=options.output is not None) as folder:
        counted = _select_greedily(options, members) if is_greedy else dict.fromkeys(members, 1)
        networks = [_load(options, member) for member in counted]
        _require_combinable(options, networks, combined)
        results = []
        for member, trained in zip(counted, networks, strict=True):
            results.append(_evaluate_one(options, member, trained))
            ensemble.release_data(trained, networks[0])
        result = _combine(options, results, list(counted.values()), combined)
        text = _write(options, result, folder, target)
    print(text, flush=True)


def _select_greedily(options: Options, members: Sequence[Member]) -> dict[Member, int]:
    """Return the networks of the ensemble that fits the runs' own validation images best, with counts."""
    first, predictions = None, []
    for member in members:  # one at a time, as a sweep may have hundreds
        trained = load_run(member.run, member.weights, ensemble.own_data(options.data_overrides))
        first = first or trained
        if trained is not first:
            ensemble.require_same_classes(first, trained)
            ensemble.require_same_images([first, trained], "val")
        tta = trained.choose_tta(options.tta)
        changes = {**_trainer_changes(options), "limit_test_batches": 1.0}
        predictions.append(run_forward(trained, "val", tta, **changes).predictions)
        if trained is not first:
            ensemble.release_data(trained, first)
    selected = ensemble.select_greedily([one.log_probabilities for one in predictions], predictions[0].labels)
    return {members[position]: count for position, count in selected.items()}


def _require_combinable(options: Options, networks: Sequence[TrainedRun], combined: str) -> None:
    """Check that networks can be combined, before running them."""
    check = ensemble.require_same_network if combined == "average" else ensemble.require_same_classes
    for other in networks[1:]:
        check(networks[0], other)
    ttas = sorted({trained.choose_tta(options.tta) for trained in networks})
    if combined == "average" and len(ttas) > 1:
        raise InputError(f"tta=null: the runs were tested with tta {' and '.join(ttas)}; give tta=…")
    ensemble.require_same_images(networks, options.split)


def _combine(
    options: Options, results: Sequence[EvaluationResult], counts: Sequence[int], combined: str
) -> EvaluationResult:
    networks, first = [result.trained for result in results], results[0]
    if combined == "average":
        device = torch.device(first.forward.device)
        recompute = options.batch_norm == "recompute"
        mean = ensemble.average_weights(networks, recompute=recompute, device=device)
        ensemble.lend_data(first.trained, mean)
        forward = run_forward(mean, options.split, first.tta, **_trainer_changes(options))
        title = f"average of {len(networks)} networks' weights"
    else:
        mean = first.trained
        forward = ensemble.average_probabilities(networks, [result.forward for result in results], counts)
        title = f"ensemble of {plural(len(networks), 'network')}, mean of probabilities"
        title += f", {sum(counts)} selected greedily" if options.ensemble == GREEDY else ""
    return EvaluationResult(
        title=title,
        trained=mean,
        forward=forward,
        tta=", ".join(sorted({result.tta for result in results})),
        members=[
            (result.title + (f" ×{count}" if count > 1 else ""), result.figures({}))
            for result, count in zip(results, counts, strict=True)
        ],
        combined=combined,
    )


def _load(options: Options, member: Member) -> TrainedRun:
    return load_run(member.run, member.weights, options.data_overrides)


def _trainer_changes(options: Options) -> dict[str, Any]:
    """Return changes to the run's trainer, whose batch limits apply only to the run's own test."""
    changes: dict[str, Any] = {}
    if options.accelerator is not None:
        changes["accelerator"] = options.accelerator
    if options.split != "test" or options.data:
        changes["limit_test_batches"] = 1.0
    return changes


def _output_folder(options: Options, member: Member, *, is_alone: bool) -> Path:
    own_tta = run_config.read_tta(run_config.read_config(member.run))
    tta = None if options.tta == own_tta else options.tta
    name = output_files.evaluation_name(options.split, options.data, tta, member.weights)
    if options.output is None:
        return member.run.path / output_files.FOLDER / name
    return options.output if is_alone else options.output / f"{member.run.path.name}-{name}"


def _write(options: Options, result: EvaluationResult, folder: Path, target: Path) -> str:
    """Write an evaluation to `folder`, later moved to `target`, and return its text for the terminal."""
    trained, predictions = result.trained, result.forward.predictions
    intervals = {}
    if options.num_resamples:
        intervals = bootstrap_intervals(predictions, options.num_resamples, options.seed, LEVEL)
        # All resamples equal: they say nothing about other images.
        intervals = {name: ends for name, ends in intervals.items() if not torch.equal(*ends)}
    intervals |= fraction_intervals(predictions)
    figures, classes = result.figures(intervals), result.class_rows(intervals)
    images = trained.datamodule.files(options.split)
    mistakes = output_files.describe_mistakes(predictions, trained.class_names, images)
    content = result.to_json(options, figures, classes) | {"mistakes": mistakes}
    output_files.write_json(folder / output_files.RESULT, content)
    files = [output_files.RESULT]
    if options.predictions is not False:
        file = folder / output_files.PREDICTIONS
        output_files.write_predictions(file, predictions, trained.class_names, result.forward.rows, images)
        files.append(output_files.PREDICTIONS)
    if options.figures:
        title = f"{options.split}: {len(predictions.labels):,} images"
        part = trained.datamodule.subset(options.split)
        files += output_files.draw_figures(folder, predictions, part, trained.class_names, title, images)
    here = Path.cwd()
    shown = target.relative_to(here) if target.is_relative_to(here) else target
    blocks = [render(options, result, figures, classes, str(shown / output_files.RESULT))]
    blocks += [render_mistakes(mistakes)] if mistakes else []
    return "\n\n".join([*blocks, f"{shown}: {', '.join(files)}"])
