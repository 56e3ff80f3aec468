"""The work of `scripts/evaluate.py`, from what was asked to what is shown and written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from project.config.choices import require_accelerator
from project.errors import InputError
from project.inference import load_run, run_config
from project.inference.evaluate import console, ensemble, output_paths, result_files
from project.inference.evaluate.ensemble_members import Member, Members, find_networks
from project.inference.evaluate.forward import Pass, run_over
from project.inference.evaluate.metrics import intervals, measured
from project.inference.evaluate.options import Options
from project.inference.evaluate.result import Subject, run_figures
from project.inference.evaluate.same_images import lend_data, release_data, require_same_images
from project.inference.load_run import Trained
from project.runs.provenance import now, versions
from project.runtime.text import printable

METHOD = "percentile bootstrap over images (Efron & Tibshirani 1993, sec. 13.3)"
LEVEL = 0.95


def evaluate(options: Options, found: Members | None = None) -> None:
    """Evaluate a run, or several, each alone or together; show and write what came out.

    Args:
        options: of the command line.
        found: what `find_networks` found with them; None to look here.

    Raises:
        InputError: something that was asked cannot be had.
        NonFiniteError: a network gives something else than numbers.
    """
    found = found or find_networks(options)
    several = len(found.members) > 1
    require_accelerator(options.accelerator)
    if several and options.combine != "none":
        _evaluate_together(options, found.members, found.home)
        return
    for member in found.members:
        place = _place(options, member, several=several)
        with output_paths.replacing(place, told=options.output is not None) as folder:
            shown = _report(options, _evaluate_one(options, member, _load(options, member)), folder, place)
        print(shown, flush=True)  # when all is written: whoever reads may have enough, as `head` has


def _evaluate_one(options: Options, member: Member, trained: Trained) -> Subject:
    views = _views(options, trained)
    result = run_over(trained, options.split, views, **_changes(options, trained))
    return Subject(member.shown, trained, result, views, member.weights)


def _evaluate_together(options: Options, members: Sequence[Member], home: Path) -> None:
    combined = options.combine or "ensemble"
    weights = "auto" if len(options.weights) > 1 else options.weights[0]
    name = output_paths.name_of(options.split, [*options.data], options.views, weights)
    shown = [str(member.run.path.absolute()) + member.weights for member in members]
    own = home / output_paths.FOLDER / output_paths.name_together(name, combined, shown)
    place = options.output or own
    with output_paths.replacing(place, told=options.output is not None) as folder:
        networks = [_load(options, member) for member in members]
        _require_alike(options, networks, combined)
        subjects = []
        for member, trained in zip(members, networks, strict=True):
            subjects.append(_evaluate_one(options, member, trained))
            release_data(trained, networks[0])
        together = _together(options, subjects, combined)
        shown_together = _report(options, together, folder, place)
    print(shown_together, flush=True)


def _require_alike(options: Options, networks: Sequence[Trained], combined: str) -> None:
    """Make sure, before anything is computed, that networks can be one.

    Raises:
        InputError: they cannot.
    """
    for other in networks[1:]:
        ensemble.require_same_classes(networks[0], other)
        if combined == "average":
            ensemble.require_same_network(networks[0], other)
    views = sorted({_views(options, trained) for trained in networks})
    if combined == "average" and len(views) > 1:
        raise InputError(f"views=null: the runs were tested with views {' and '.join(views)}; give views=…")
    require_same_images(networks, options.split)


def _together(options: Options, subjects: Sequence[Subject], combined: str) -> Subject:
    """Make several networks one, and have what that says of the images."""
    networks, first = [subject.trained for subject in subjects], subjects[0]
    if combined == "average":
        device = torch.device(first.result.device)
        mean = ensemble.average(networks, recompute=options.batch_norm == "recompute", device=device)
        lend_data(first.trained, mean)
        result = run_over(mean, options.split, first.views, **_changes(options, mean))
        title = f"average of {len(networks)} networks' weights"
    else:
        mean = first.trained
        result = ensemble.ensemble(networks, [subject.result for subject in subjects])
        title = f"ensemble of {len(networks)} networks, mean of probabilities"
    rows = [(subject.title, _own_figures(subject.result)) for subject in subjects]
    views = ", ".join(sorted({subject.views for subject in subjects}))
    return Subject(title, mean, result, views, ",".join(options.weights), rows, combined)


def _load(options: Options, member: Member) -> Trained:
    return load_run.load(member.run, member.weights, [*options.data, *options.paths])


def _views(options: Options, trained: Trained) -> str:
    return options.views or trained.config.get("test_views", "none")


def _changes(options: Options, trained: Trained) -> dict[str, Any]:
    """What the trainer is to do otherwise than in the run. Its limits hold for the test that is repeated."""
    changes: dict[str, Any] = {}
    if options.accelerator is not None:
        changes["accelerator"] = options.accelerator
    if options.split != "test" or options.data:
        changes["limit_test_batches"] = 1.0
    return changes


def _place(options: Options, member: Member, *, several: bool) -> Path:
    """Where the evaluation of one network is written."""
    own_views = None if options.views == _views_of(member) else options.views
    name = output_paths.name_of(options.split, options.data, own_views, member.weights)
    if options.output is None:
        return member.run.path / output_paths.FOLDER / name
    if not several:
        return options.output
    return options.output / f"{member.run.path.name}-{name}"


def _views_of(member: Member) -> str | None:
    try:
        config = run_config.read_config(member.run)
    except InputError:  # told when the run is loaded
        return None
    return config.get("test_views", "none")


def _own_figures(result: Pass) -> dict[str, Any]:
    """Figures without intervals; accuracy and loss as the run itself computes them."""
    return _exact(result_files.figures_of(measured(result.predictions), {}), result)


def _exact(figures: dict[str, Any], result: Pass) -> dict[str, Any]:
    figures["accuracy"]["value"] = result.acc
    if result.loss is not None:
        figures.setdefault("loss", {})["value"] = result.loss
    return figures


def _report(options: Options, subject: Subject, folder: Path, place: Path) -> str:
    """Write an evaluation, and return what is to be shown of it.

    Args:
        options: by the user.
        subject: what was evaluated.
        folder: to write to.
        place: what the folder will be called.
    """
    result, trained = subject.result, subject.trained
    predictions = result.predictions
    names = [printable(name) for name in trained.class_names]
    figures = measured(predictions)
    bounds = intervals(predictions, options.resamples, options.seed, LEVEL) if options.resamples else {}
    shown = _exact(result_files.figures_of(figures, bounds), result)
    classes = result_files.classes_of(figures, bounds, names)
    own = run_figures(options, subject)
    part = trained.datamodule.part(options.split)

    content = {
        "run": None if subject.combined else trained.run.shown,
        "checkpoint": None if subject.combined else trained.checkpoint.name,
        "combined": subject.combined,
        "members": [{"name": name, "figures": values} for name, values in subject.members],
        "split": options.split,
        "data": trained.datamodule.name,
        "overrides": [*options.data, *options.paths],
        "images": len(predictions.labels),
        "views": subject.views,
        "device": result.device,
        "precision": result.precision,
        "figures": shown,
        "run_figures": own,
        "intervals": {
            "method": METHOD,
            "level": LEVEL,
            "resamples": options.resamples,
            "seed": options.seed,
        }
        if bounds
        else None,
        "classes": classes,
        "calibration": result_files.calibration_of(predictions),
        "confusion": result_files.confusion_of(predictions),
        "created": now(),
        "versions": dict(versions()),
    }
    result_files.write_json(folder / output_paths.RESULT, content)
    files = [output_paths.RESULT]
    if options.predictions:
        of_images = trained.datamodule.files(options.split)
        result_files.write_predictions(
            folder / output_paths.PREDICTIONS, predictions, names, result.rows, of_images
        )
        files.append(output_paths.PREDICTIONS)
    if options.figures:
        from project.inference.evaluate.figures import draw  # imports Pillow

        title = f"{options.split}: {len(predictions.labels):,} images"
        files += draw(folder, predictions, part, names, title)
    shown_of_it = console.render(
        options, subject, shown, classes, own, str(_short(place) / output_paths.RESULT)
    )
    return f"{shown_of_it}\n\n{_short(place)}: {', '.join(files)}"


def _short(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
