"""Which networks a command line means: runs, the runs of a sweep, their checkpoints. No torch."""

import re
from dataclasses import dataclass
from pathlib import Path

from project.errors import InputError
from project.inference import run_config
from project.inference.evaluate.options import Options
from project.runs.find import LAST, find_last, find_trained, ranked
from project.runs.run_folder import RunFolder
from project.runs.sweep_folder import find_sweep

ALL = "all"
TOP = re.compile(r"top([1-9]\d*)")


@dataclass(frozen=True)
class Member:
    """A network to be evaluated.

    Args:
        run: that trained it.
        weights: which of its checkpoints, as `project.inference.load_run.load` takes it.
    """

    run: RunFolder
    weights: str

    @property
    def shown(self) -> str:
        """As a user would name it."""
        return self.run.shown if self.weights == "auto" else f"{self.run.shown} {self.weights}"


@dataclass(frozen=True)
class Members:
    """The networks of a command line.

    Args:
        members: in the order given; those of a sweep with the best first.
        home: the folder that what they are together belongs to.
    """

    members: list[Member]
    home: Path


def find_networks(options: Options) -> Members:
    """Find the networks that a command line means, and make sure that they can be evaluated as it says.

    Raises:
        InputError: there are none, a run is damaged or has no such weights, or there is no such data set.
    """
    found = find_members(options.run, options.weights, options.ensemble, options.outputs)
    if options.combine in ("ensemble", "average") and len(found.members) == 1:
        raise InputError(
            f"combine={options.combine}: there is one network; give several runs (run=a,b), checkpoints "
            "(weights=best,last), or a sweep with ensemble=all"
        )
    for member in found.members:
        run_config.refuse_wrong(member.run, member.weights, [*options.data, *options.paths])
    return found


def find_members(wanted: list[str], weights: list[str], several: str | None, outputs: Path) -> Members:
    """Find the networks that are meant: each run with each of the weights.

    Args:
        wanted: runs, sweeps, or `last`.
        weights: which checkpoints.
        several: of sweeps, `all` their runs or `top3`; None stands for the best one.
        outputs: where `last` is looked for.

    Raises:
        InputError: there are none, or something else than a sweep is asked for several runs.
    """
    if several is not None and several != ALL and not TOP.fullmatch(several):
        raise InputError(f"ensemble={several}: give all, or a number of a sweep's best runs such as top3")
    joined = ",".join(wanted)
    if len(wanted) > 1 and Path(joined).is_dir():  # a name with commas
        wanted = [joined]
    runs: list[RunFolder] = []
    homes: list[Path] = []
    for name in wanted:
        found, home = _find(name, several, outputs)
        runs += found
        homes.append(home)
    members = [Member(run, which) for run in runs for which in weights]
    seen = set()
    for member in members:
        if (key := (member.run.path.resolve(), member.weights)) in seen:
            raise InputError(f"run={member.shown}: is given twice; leave one out")
        seen.add(key)
    return Members(members, homes[0])


def _find(name: str, several: str | None, outputs: Path) -> tuple[list[RunFolder], Path]:
    if several is None:
        run = find_trained(name, outputs)
        return [run], run.path
    folder = find_last(outputs) if name == LAST else Path(name)
    if find_sweep(folder) is None:
        raise InputError(f"ensemble={several}: {folder} is no sweep; give one, or leave ensemble out")
    best = ranked(folder)
    if match := TOP.fullmatch(several):
        count = int(match[1])
        if count > len(best):
            raise InputError(f"ensemble={several}: {folder} has {len(best)} runs with a result")
        best = best[:count]
    return [RunFolder(run.folder) for run in best], folder
