"""The work of `scripts/evaluate.py`, from what was asked to what is shown and written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from project import rebuild
from project.choices import require_accelerator
from project.errors import InputError
from project.evaluation import combining, places, record, table
from project.evaluation.measures import intervals, measured
from project.evaluation.members import Member, find_members
from project.evaluation.options import Options
from project.evaluation.passes import Pass, run_over
from project.rebuild import Trained
from project.runs.provenance import now, versions
from project.wording import printable

METHOD = "percentile bootstrap over images (Efron & Tibshirani 1993, sec. 13.3)"
LEVEL = 0.95
CLOSE = 1e-5
"""By how much, relatively, a loss may differ that was summed in another order."""


@dataclass(frozen=True)
class Subject:
    """A network, or several as one, and what it said of the images.

    Args:
        title: what it is, for the screen.
        trained: the network; of several, the first.
        result: of the pass over the images.
        views: that were averaged.
        weights: as asked.
        members: of several, each with its own figures.
        combined: how several were made one, or None.
    """

    title: str
    trained: Trained
    result: Pass
    views: str
    weights: str
    members: Sequence[tuple[str, dict[str, Any]]] = ()
    combined: str | None = None


def evaluate(options: Options) -> None:
    """Evaluate a run, or several, each alone or together; show and write what came out.

    Raises:
        InputError: something that was asked cannot be had.
        NonFiniteError: a network gives something else than numbers.
    """
    found = find_members(options.run, options.weights, options.ensemble, options.outputs)
    several = len(found.members) > 1
    if options.combine in ("ensemble", "average") and not several:
        raise InputError(
            f"combine={options.combine}: there is one network; give several runs (run=a,b), checkpoints "
            "(weights=best,last), or a sweep with ensemble=all"
        )
    require_accelerator(options.accelerator)
    if several and options.combine != "none":
        _evaluate_together(options, found.members, found.home)
        return
    for member in found.members:
        place = _place(options, member, several=several)
        with places.replacing(place, told=options.output is not None) as folder:
            shown = _report(options, _evaluate_one(options, member), folder, place)
        print(shown, flush=True)  # when all is written: whoever reads may have enough, as `head` has


def _evaluate_one(options: Options, member: Member) -> Subject:
    trained = _load(options, member)
    views = options.views or trained.config.get("test_views", "none")
    result = run_over(trained, options.split, views, **_changes(options, trained))
    return Subject(member.shown, trained, result, views, member.weights)


def _evaluate_together(options: Options, members: Sequence[Member], home: Path) -> None:
    combined = options.combine or "ensemble"
    weights = "auto" if len(options.weights) > 1 else options.weights[0]
    name = places.name_of(options.split, [*options.data], options.views, weights)
    shown = [str(member.run.path.absolute()) + member.weights for member in members]
    own = home / places.FOLDER / places.name_together(name, combined, shown)
    place = options.output or own
    with places.replacing(place, told=options.output is not None) as folder:
        subjects = [_evaluate_one(options, member) for member in members]
        networks = [subject.trained for subject in subjects]
        if combined == "average":
            device = torch.device(subjects[0].result.device)
            mean = combining.average(networks, recompute=options.batch_norm == "recompute", device=device)
            changes = _changes(options, mean)
            result = run_over(mean, options.split, subjects[0].views, **changes)
            title = f"average of {len(members)} networks' weights"
        else:
            mean = networks[0]
            result = combining.ensemble(networks, [subject.result for subject in subjects])
            title = f"ensemble of {len(members)} networks, mean of probabilities"
        rows = [(subject.title, _own_figures(subject.result)) for subject in subjects]
        views = subjects[0].views
        together = Subject(title, mean, result, views, ",".join(options.weights), rows, combined)
        shown_together = _report(options, together, folder, place)
    print(shown_together, flush=True)


def _load(options: Options, member: Member) -> Trained:
    return rebuild.load(member.run, member.weights, [*options.data, *options.paths])


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
    name = places.name_of(options.split, options.data, own_views, member.weights)
    if options.output is None:
        return member.run.path / places.FOLDER / name
    if not several:
        return options.output
    return options.output / f"{member.run.path.name}-{name}"


def _views_of(member: Member) -> str | None:
    try:
        config = rebuild.read_config(member.run)
    except InputError:  # told when the run is loaded
        return None
    return config.get("test_views", "none")


def _own_figures(result: Pass) -> dict[str, Any]:
    """Figures without intervals; accuracy and loss as the run itself computes them."""
    return _exact(record.figures_of(measured(result.predictions), {}), result)


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
    shown = _exact(record.figures_of(figures, bounds), result)
    classes = record.classes_of(figures, bounds, names)
    own = _run_figures(options, subject)
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
        "calibration": record.calibration_of(predictions),
        "confusion": record.confusion_of(predictions),
        "created": now(),
        "versions": dict(versions()),
    }
    record.write_json(folder / places.RESULT, content)
    files = [places.RESULT]
    if options.predictions:
        of_images = trained.datamodule.files(options.split)
        record.write_predictions(folder / "predictions.csv", predictions, names, result.rows, of_images)
        files.append("predictions.csv")
    if options.figures:
        from project.evaluation.figures import draw  # imports Pillow

        title = f"{options.split}: {len(predictions.labels):,} images"
        files += draw(folder, predictions, part, names, title)
    screen = _screen(options, subject, shown, classes, own, str(_short(place) / places.RESULT))
    return f"{screen}\n\n{_short(place)}: {', '.join(files)}"


def _short(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _screen(
    options: Options,
    subject: Subject,
    figures: dict[str, Any],
    classes: Sequence[dict[str, Any]],
    own: Mapping[str, float] | None,
    file: str,
) -> str:
    trained, result = subject.trained, subject.result
    images = f"{len(result.predictions.labels):,} images"
    of = "" if subject.combined else f"{trained.checkpoint.name}, "
    views = "" if subject.views == "none" else f", views {subject.views}"
    computed = f"{result.device}, {result.precision}"
    what = f"{of}{trained.datamodule.name} {options.split}, {images}{views}, {computed}"
    lines = [subject.title, what, ""]
    if subject.members:
        whole = ("all together", figures)
        lines += [table.render_members([*subject.members, whole]), ""]
    notes, remark = _compared(subject, own)
    lines += [table.render_figures(figures, notes), "", table.render_classes(classes, file)]
    return "\n".join(lines + (["", remark] if remark else []))


def _run_figures(options: Options, subject: Subject) -> dict[str, float] | None:
    """Accuracy and loss that the run has on record for the same weights, split and views, or None."""
    trained = subject.trained
    status = trained.run.read_status()
    metrics, tested = status.get("metrics"), status.get("weights")
    views = trained.config.get("test_views", "none") if options.split == "test" else "none"
    its_own = trained.checkpoint.resolve().parent == trained.run.checkpoints.resolve()
    same = subject.combined is None and subject.views == views and trained.checkpoint.stem == tested
    same = same and its_own  # a file of another run may have the same name
    if not same or options.split == "train" or not isinstance(metrics, dict):
        return None
    if any(not word.startswith(("data.path=", "data.eval_batch_size=")) for word in options.data):
        return None
    acc, loss = metrics.get(f"{options.split}/acc"), metrics.get(f"{options.split}/loss")
    return None if acc is None or loss is None else {"accuracy": acc, "loss": loss}


def _compared(subject: Subject, own: Mapping[str, float] | None) -> tuple[dict[str, str], str]:
    """Notes behind the figures, and a line where they are not the run's own."""
    result, trained = subject.result, subject.trained
    if own is None or result.loss is None:
        return {}, ""
    same = {
        "accuracy": result.acc == own["accuracy"],
        "loss": math.isclose(result.loss, own["loss"], rel_tol=CLOSE, abs_tol=1e-9),
    }
    notes = {name: "as in the run" for name, equal in same.items() if equal}
    if all(same.values()) or any(word.startswith("data.path=") for word in trained.data_overrides):
        return notes, ""
    status, config = trained.run.read_status(), trained.config
    of_run = [config["trainer"]["accelerator"], config["trainer"]["precision"]]
    of_run += ["compiled"] if config.get("compile") else []
    of_run += [f"{ranks} processes"] if (ranks := status.get("ranks", 1)) != 1 else []
    then = (status.get("versions") or {}).get("torch")
    here = [result.device, result.precision]
    if then is not None and then != versions()["torch"]:
        of_run.append(f"torch {then}")
        here.append(f"torch {versions()['torch']}")
    figures = (
        f"The run itself had accuracy {own['accuracy']:.6f} and loss {own['loss']:.6f}, here "
        f"{result.acc:.6f} and {result.loss:.6f}"
    )
    if of_run == here:
        return notes, f"{figures}, though computed alike: its images, or its code, have changed since."
    told = ", ".join(map(str, of_run))
    return notes, f"{figures}: computed there by {told}; here by {', '.join(here)}."
