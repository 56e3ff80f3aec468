"""Options of `scripts/evaluate.py`, and a search for the networks that they name. Does not import torch."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from project.config.command_options import option
from project.errors import DataError, InputError
from project.inference.options import Accelerator, DataOptions
from project.inference.run_config import check_request, is_image_classifier, read_config
from project.runs.comparison import LAST, find_best, find_last, find_trained
from project.runs.run_folder import RunFolder
from project.runs.sweep_folder import find_sweep
from project.runtime import lazy_imports
from project.runtime.console import LOADING, waiting
from project.runtime.output_files import refuse_unwritable_output

EXAMPLES = """\
examples:
  python scripts/evaluate.py run=last
  python scripts/evaluate.py run=last split=val tta=flip
  python scripts/evaluate.py run=outputs/cnn_mnist_adam/2026-01-31_09-30-00 paths.data=/sets
  python scripts/evaluate.py run=last data=image_folder data.path=photos
  python scripts/evaluate.py run=outputs/sweep/2026-01-31_09-30-00 ensemble=top3
  python scripts/evaluate.py run=outputs/sweep/2026-01-31_09-30-00 ensemble=greedy
  python scripts/evaluate.py run=first,second combine=average
"""
ALL, GREEDY = "all", "greedy"
TOP_N = re.compile(r"top([1-9]\d*)")


@dataclass(frozen=True, kw_only=True)
class Options(DataOptions):
    """Evaluate a trained network, by default exactly as in the run's test. The keys
    choose another split, other data, or several networks.
    """

    run: list[str] = option(  # type: ignore[assignment]  # several
        [LAST], "run folder, sweep folder (its best run), or last; several: a,b"
    )
    weights: list[str] = option(  # type: ignore[assignment]  # several
        ["auto"], "auto (those of the run's test), best, last, a file; or several"
    )
    split: Literal["test", "val", "train"] = option("test", "split to evaluate, without augmentation")
    ensemble: str | None = option(
        None,
        "runs of a sweep: all, the best ones, such as top3, or greedy (fits val images best)",
    )
    combine: Literal["ensemble", "average", "none"] | None = option(
        None,
        "several networks: ensemble (mean of probabilities, the default), average (of weights), or none",
    )
    batch_norm: Literal["recompute", "average"] = option(
        "recompute", "batch-norm statistics of averaged weights"
    )
    predictions: bool | None = option(
        None, "write predictions.csv, one row per image; null: true if they fit into cells"
    )
    figures: bool = option(True, "draw confusion matrix, reliability diagram, worst mistakes")
    num_resamples: int = option(
        1000, "bootstrap resamples; 0: intervals of fractions only", least=0, most=100_000
    )
    seed: int = option(0, "seed of the resampling", least=0)
    accelerator: Accelerator | None = option(None, "device; null: as in the run")
    output: Path | None = option(None, "output folder; null: evaluation/… in the run's folder")


def main(options: Options) -> None:
    """Check the options without torch, then evaluate."""
    if options.output is not None:
        refuse_unwritable_output(f"output={options.output}", options.output, folder=True)
    networks = check_networks(options)
    foreign = [member for member in networks[0] if not is_image_classifier(read_config(member.run))]
    if foreign:
        with waiting(LOADING):
            from project.inference.evaluate.logged_metrics import evaluate_logged  # imports torch

        evaluate_logged(options, networks[0])
        return
    lazy_imports.defer_imports()
    with waiting(LOADING):
        from project.inference.evaluate.command import evaluate  # imports torch

    lazy_imports.freeze_gc()
    evaluate(options, networks)


@dataclass(frozen=True)
class Member:
    """Run and weights of one network to evaluate."""

    run: RunFolder
    weights: str

    @property
    def shown(self) -> str:
        """Name to show in messages."""
        return self.run.shown if self.weights == "auto" else f"{self.run.shown} {self.weights}"


def check_networks(options: Options) -> tuple[list[Member], Path]:
    """Find the networks of a command line and check that they can be evaluated."""
    members, base_folder = find_networks(options.run, options.weights, options.ensemble, options.outputs)
    if options.ensemble == GREEDY and options.combine not in (None, "ensemble"):
        raise InputError(f"combine={options.combine}: ensemble=greedy averages probabilities; leave it out")
    if options.ensemble == GREEDY and options.split == "val":
        raise InputError("split=val: ensemble=greedy selects by these images; choose split=test")
    if options.combine in ("ensemble", "average") and len(members) == 1:
        raise InputError(
            f"combine={options.combine}: there is one network; give several runs (run=a,b), checkpoints "
            "(weights=best,last), or a sweep with ensemble=all"
        )
    usable = []
    for member in members:
        try:
            check_request(member.run, member.weights, options.data_overrides)
            usable.append(member)
        except DataError as error:
            if options.ensemble != GREEDY:
                raise
            print(f"skipped: {error}", file=sys.stderr)
    if not usable:
        raise DataError(f"ensemble={options.ensemble}: no run of {base_folder} can be evaluated; train again")
    return usable, base_folder


def find_networks(
    names: list[str], weights: list[str], ensemble: str | None, outputs: Path
) -> tuple[list[Member], Path]:
    """Find all combinations of the named runs and weights, and the folder of the first name."""
    if ensemble not in (None, ALL, GREEDY) and not TOP_N.fullmatch(ensemble):
        raise InputError(
            f"ensemble={ensemble}: give all, greedy, or a number of a sweep's best runs such as top3"
        )
    found = [_find_runs(name, ensemble, outputs) for name in names]
    members = [Member(run, which) for runs, _ in found for run in runs for which in weights]
    seen = set()
    for member in members:
        if (key := (member.run.path.resolve(), member.weights)) in seen:
            raise InputError(f"run={member.shown}: is given twice; leave one out")
        seen.add(key)
    return members, found[0][1]


def _find_runs(name: str, ensemble: str | None, outputs: Path) -> tuple[list[RunFolder], Path]:
    if ensemble is None:
        run = find_trained(name, outputs)
        return [run], run.path
    folder = find_last(outputs) if name == LAST else Path(name)
    if find_sweep(folder) is None:
        raise InputError(f"ensemble={ensemble}: {folder} is not a sweep; give a sweep, or leave ensemble out")
    best = find_best(folder)
    if match := TOP_N.fullmatch(ensemble):
        count = int(match[1])
        if count > len(best):
            raise InputError(
                f"ensemble={ensemble}: too few runs of {folder} have a result (expected {count}, got "
                f"{len(best)}); give a smaller number, or all"
            )
        best = best[:count]
    return [RunFolder(run.folder) for run in best], folder
