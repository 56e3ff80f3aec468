"""Implementation of `scripts/explain.py`: choose images, explain them, write sheet, maps and JSON."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from project.datamodules.storage.image_files import SkippedFile
from project.errors import DataError, InputError, one_line
from project.figures.explanation_sheet import Explained, Tile, explanation_sheet
from project.inference.evaluate import output_files
from project.inference.evaluate.forward import run_forward, set_up_split
from project.inference.explain.explainer import Explainer, Explanations
from project.inference.explain.methods import Settings
from project.inference.explain.neighbors import Neighbors, find_neighbors
from project.inference.explain.options import LABEL, PREDICTED, Options
from project.inference.load_run import TrainedRun, load_run
from project.inference.predict.predictions import decode_files, log_skipped
from project.loggers.tensorboard_added import add_image
from project.runs import checkpoint_files
from project.runs.provenance import now, versions
from project.runs.run_folder import RunFolder
from project.runtime.console import Column, table
from project.runtime.text import did_you_mean, plural, printable

if TYPE_CHECKING:
    import PIL.Image

RESULT, MAPS, SHEET = "explanations.json", "maps.npz", "explanations.png"
WIDTH = 80
TITLES = {
    "grad_cam": "Grad-CAM",
    "integrated_gradients": "Integrated gradients",
    "occlusion": "Occlusion",
    "attention_rollout": "Attention rollout",
}
MEANINGS = {
    "grad_cam": "bright: parts of the image that speak for the class",
    "integrated_gradients": "bright: pixels that speak for the class",
    "occlusion": "bright: covering this place lowers the score of the class most",
    "attention_rollout": "bright: patches that the network attends to, regardless of the class",
}


@dataclass(frozen=True)
class Chosen:
    """Images to explain.

    Args:
        images: (N, C, H, W) uint8.
        names: a name for each image, for people: a file or a number.
        labels: (N,) classes; None for files.
        positions: (N,) positions in the split; None for files.
        files: image files, where there are any.
        remark: line for the terminal; empty for none.
    """

    images: Tensor
    names: list[str]
    labels: Tensor | None = None
    positions: Tensor | None = None
    files: list[str] | None = None
    remark: str = ""


def explain(options: Options, run: RunFolder, files: Sequence[str], skipped: Sequence[SkippedFile]) -> None:
    """Explain images, write the results and print a table."""
    warnings.filterwarnings("ignore", module="PIL")  # about images that are decoded nevertheless
    for entry in skipped:
        log_skipped(entry)
    trained = load_run(run, options.weights, options.data_overrides)
    settings = Settings(options.layer, options.baseline, options.num_steps, options.window)
    explainer = Explainer(trained, options.method, settings, tta=options.tta, accelerator=options.accelerator)
    wanted = find_class(options.target, trained.class_names)
    target = options.output or run.path / output_files.FOLDER / _name(options, explainer.method)
    parts = (RESULT, MAPS, SHEET)
    with output_files.replacing_folder(
        target, is_given=options.output is not None, known=parts, kind="an explanation"
    ) as folder:
        chosen = choose_files(trained, files, options.count) if files else choose_images(trained, options)
        targets = chosen.labels if options.target == LABEL else wanted
        found = explainer.maps(chosen.images, targets)
        neighbors, remark = _neighbors(options, explainer, chosen)
        sheet = _write(folder, options, explainer, chosen, found, neighbors)
    lines = [one for one in (explainer.attribution.caveat, chosen.remark, remark) if one]
    if options.output is None:
        tag = f"{'input' if files else options.split}/{target.name}"
        step = int(checkpoint_files.read(trained.checkpoint).get("global_step", 0))
        lines += ["shown in TensorBoard"] if add_image(run, target.name, tag, sheet, step) else []
    here = Path.cwd()
    shown = target.relative_to(here) if target.is_relative_to(here) else target
    layer = explainer.attribution.layer
    of = f" of {layer.name}, {layer.size[0]}×{layer.size[1]} cells" if layer else ""
    print(f"{run.shown}, {trained.checkpoint.name}\n{TITLES[explainer.method]}{of}\n")
    print(render(chosen, found, neighbors, trained.class_names), end="\n\n")
    print("\n".join([*lines, f"{shown}: {', '.join((SHEET, MAPS, RESULT))}"]), flush=True)


def find_class(target: str, names: Sequence[str]) -> int | None:
    """Return the class that `target` names; None for the predicted class and the label."""
    if target in names:
        return names.index(target)
    if target in (PREDICTED, LABEL):
        return None
    raise InputError(
        f"target={printable(target)}: no such class; {did_you_mean(target, [PREDICTED, LABEL, *names])}"
    )


def choose_files(trained: TrainedRun, files: Sequence[str], count: int) -> Chosen:
    """Decode at most `count` files, evenly spaced; damaged ones are reported."""
    step = -(-len(files) // count)
    white_level = trained.config["data"].get("white_level")
    decoded = decode_files(files[::step], trained.input_shape, ahead_by=count, white_level=white_level)
    images, found = [], []
    for entry in decoded:
        if isinstance(entry, SkippedFile):
            log_skipped(entry)
        else:
            images.append(entry.image)
            found.append(entry.file)
    if not images:
        raise DataError(f"input={printable(files[0])}: none of {plural(len(files), 'file')} could be decoded")
    remark = f"{len(files[::step]):,} of {len(files):,} files; count={len(files)} for all" if step > 1 else ""
    return Chosen(torch.stack(images), [Path(file).name for file in found], files=found, remark=remark)


def choose_images(trained: TrainedRun, options: Options) -> Chosen:
    """Choose images of a split: the worst mistakes, the first, random ones, or those with given numbers."""
    data, remark = trained.datamodule, ""
    if options.images == ["worst"]:
        is_own_test = options.split == "test" and not options.data
        changes: dict[str, Any] = {} if is_own_test else {"limit_test_batches": 1.0}
        tta = trained.choose_tta(options.tta)
        forward = run_forward(trained, options.split, tta, accelerator=options.accelerator, **changes)
        positions = output_files.worst_mistakes(forward.predictions)[: options.count]
        if not len(positions):
            positions = torch.arange(min(options.count, len(forward.predictions.labels)))
            remark = f"no mistakes on the {options.split} split: its first images"
    else:
        data.prepare_data()
        set_up_split(data, options.split)
        positions = _positions(options, data.count(options.split))
    labels, files = data.targets(options.split)[positions], data.files(options.split)
    chosen = None if files is None else [files[position] for position in positions.tolist()]
    return Chosen(
        images=data.pixels(options.split, positions),
        names=[f"{options.split} no. {position}" for position in positions.tolist()],
        labels=labels,
        positions=positions,
        files=chosen,
        remark=remark,
    )


def _positions(options: Options, total: int) -> Tensor:
    """Return the positions of the first, random or numbered images of a split."""
    if options.images == ["first"]:
        return torch.arange(min(options.count, total))
    if options.images == ["random"]:
        order = torch.randperm(total, generator=torch.Generator().manual_seed(options.seed))
        return order[: options.count].sort().values
    numbers = [int(word) for word in options.images]
    if wrong := [number for number in numbers if number >= total]:
        raise InputError(
            f"images={wrong[0]}: no such image of the {options.split} split (expected 0 to {total - 1}, got "
            f"{wrong[0]}); give a smaller number"
        )
    return torch.tensor(numbers)


def _neighbors(options: Options, explainer: Explainer, chosen: Chosen) -> tuple[Neighbors | None, str]:
    """Return the nearest training images; None with a remark if they cannot be read."""
    if not options.neighbors:
        return None, ""
    own = chosen.positions if options.split == "train" else None
    try:
        found = find_neighbors(explainer, chosen.images, options.neighbors, options.train_images, own)
    except (DataError, InputError) as error:
        return None, f"no nearest training images: {one_line(error)}"
    total = explainer.trained.datamodule.count("train")
    is_part = found.num_searched < total
    more = f" of {total:,}; train_images=null searches all" if is_part else ""
    return found, f"nearest of {found.num_searched:,} training images{more}"


def _name(options: Options, method: str) -> str:
    """Name an explanation after its options: `explain-grad_cam-test`, `explain-occlusion-photos`."""
    parts = ["explain", method]
    if options.input:
        parts.append(Path(options.input[0]).name)
        parts += [] if options.weights == "auto" else [Path(options.weights).stem]
    else:
        parts.append(output_files.evaluation_name(options.split, options.data, options.tta, options.weights))
        parts += [] if options.images == ["worst"] else ["_".join(options.images)]
    parts += [] if options.target == PREDICTED else [options.target]
    return output_files.join_name(parts)


def _write(
    folder: Path,
    options: Options,
    explainer: Explainer,
    chosen: Chosen,
    found: Explanations,
    neighbors: Neighbors | None,
) -> "PIL.Image.Image":
    """Write maps, JSON and sheet; return the sheet."""
    names = explainer.trained.class_names
    np.savez_compressed(
        folder / MAPS,
        maps=found.maps.numpy(),
        attributions=found.attributions.numpy(),
        probabilities=found.probabilities.numpy(),
        targets=found.targets.numpy(),
        images=chosen.images.numpy(),
    )
    layer = explainer.attribution.layer
    content = {
        "run": explainer.trained.run.shown,
        "checkpoint": explainer.trained.checkpoint.name,
        "method": explainer.method,
        "layer": layer.name if layer else None,
        "baseline": options.baseline if explainer.method in ("integrated_gradients", "occlusion") else None,
        "split": None if options.input else options.split,
        "data": explainer.trained.datamodule.name if not options.input else None,
        "searched_training_images": neighbors.num_searched if neighbors else 0,
        "explanations": [_row(place, chosen, found, neighbors, names) for place in range(len(chosen.images))],
        "created": now(),
        "versions": dict(versions()),
    }
    output_files.write_json(folder / RESULT, content)
    sheet = explanation_sheet(
        [_explained(place, chosen, found, neighbors, names) for place in range(len(chosen.images))],
        title=f"{TITLES[explainer.method]}: {explainer.trained.run.path.name}",
        meaning=MEANINGS[explainer.method],
    )
    sheet.save(folder / SHEET, optimize=True)
    return sheet


def _row(
    place: int, chosen: Chosen, found: Explanations, neighbors: Neighbors | None, names: Sequence[str]
) -> dict[str, Any]:
    """Return the JSON of one image."""
    predicted = int(found.predicted[place])
    row: dict[str, Any] = {
        "index": None if chosen.positions is None else int(chosen.positions[place]),
        "file": None if chosen.files is None else printable(chosen.files[place]),
        "label": None if chosen.labels is None else names[int(chosen.labels[place])],
        "prediction": names[predicted],
        "probability": float(found.probabilities[place, predicted]),
        "target": names[int(found.targets[place])],
        "target_probability": float(found.probabilities[place, int(found.targets[place])]),
        "has_evidence": bool(found.maps[place].any()),
    }
    if neighbors is not None:
        row["neighbors"] = [
            {
                "index": position,
                "file": None if neighbors.files is None else printable(neighbors.files[position]),
                "label": names[label],
                "similarity": similarity,
            }
            for position, label, similarity in zip(
                neighbors.positions[place].tolist(),
                neighbors.labels[place].tolist(),
                neighbors.similarities[place].tolist(),
                strict=True,
            )
        ]
    return row


def percent(probability: float) -> str:
    """Return a probability such as `97 %`, without rounding to 0 or 100."""
    if 0.995 <= probability < 1:
        return "> 99 %"
    return "< 1 %" if 0 < probability < 0.005 else f"{100 * probability:.0f} %"


def _explained(
    place: int, chosen: Chosen, found: Explanations, neighbors: Neighbors | None, names: Sequence[str]
) -> Explained:
    """Return one image of the sheet."""
    predicted, target = int(found.predicted[place]), int(found.targets[place])
    probability = percent(float(found.probabilities[place, predicted]))
    label = None if chosen.labels is None else int(chosen.labels[place])
    lines = [f"{names[predicted]} ({probability})"]
    if label is not None:
        lines = [f"{names[label]} → {names[predicted]} ({probability})"]
    notes = [] if target == predicted else [f"map of: {names[target]}"]
    notes += [] if found.maps[place].any() else ["no evidence for the class"]
    lines.append(", ".join([*notes, printable(chosen.names[place])]))
    tiles = []
    if neighbors is not None:
        rows = zip(
            neighbors.pixels[place],
            neighbors.labels[place].tolist(),
            neighbors.similarities[place].tolist(),
            strict=True,
        )
        tiles = [
            Tile(pixels.numpy(), f"{names[label]}\n{similarity:.2f}") for pixels, label, similarity in rows
        ]
    is_wrong = label is not None and label != predicted
    return Explained(chosen.images[place].numpy(), found.maps[place].numpy(), lines, tiles, is_wrong)


def render(chosen: Chosen, found: Explanations, neighbors: Neighbors | None, names: Sequence[str]) -> str:
    """Format one row per image for the terminal."""
    rows = []
    for place in range(len(chosen.images)):
        row = _row(place, chosen, found, neighbors, names)
        near = ", ".join(one["label"] for one in row.get("neighbors", ()))
        target = "" if row["target"] == row["prediction"] else row["target"]
        name = printable(chosen.names[place])
        rows.append([name, row["label"] or "", row["prediction"], percent(row["probability"]), target, near])
    titles = ["image", "true", "predicted", "", "explained", "nearest training images"]
    used = [at for at in range(len(titles)) if any(row[at] for row in rows)]
    columns = [Column(titles[at], right=at == 3, keep="ends") for at in used]
    return table(columns, [[row[at] for at in used] for row in rows], width=WIDTH, indent=2)
