"""What is shown of an evaluation."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from project.inference.evaluate import table
from project.inference.evaluate.options import Options
from project.inference.evaluate.result import Subject
from project.runs.provenance import versions

FAR = 0.01
"""A difference in accuracy that no device or precision makes."""
CLOSE = 1e-5
"""By how much, relatively, a loss may differ that was summed in another order."""


def render(
    options: Options,
    subject: Subject,
    figures: dict[str, Any],
    classes: Sequence[dict[str, Any]],
    own: Mapping[str, float] | None,
    file: str,
) -> str:
    """Lay out an evaluation for the screen.

    Args:
        options: by the user.
        subject: what was evaluated.
        figures: of all images together, as the JSON has them.
        classes: likewise, of each class.
        own: what the run itself has on record of the same.
        file: that holds all classes.
    """
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
    if abs(result.acc - own["accuracy"]) > FAR:
        return notes, f"{figures}, further than devices differ: its images, or its code, have changed since."
    told = ", ".join(map(str, of_run))
    return notes, f"{figures}: computed there by {told}; here by {', '.join(here)}."
