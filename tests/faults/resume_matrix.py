"""Resumed runs have the results of uninterrupted ones, bit for bit.

Each cell is a configuration and some places of interruption. One run is not interrupted. A second run writes
a separate checkpoint at each place, from which a run is resumed in a copy of the second run's folder, as if
that run had been killed later. All final results are compared: weights, optimizer, schedule, averages,
counters, callbacks, metrics, table and curves.

    python tests/faults/resume_matrix.py [cell …]
"""

import csv
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import Checkpoint
from matrix_cells import COMMON, OF_SYNTHETIC, SPECIAL, Cell, Place, pairwise
from omegaconf import DictConfig, open_dict
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from project import train
from project.callbacks.trial_pause import TrialPause
from project.config.instantiate import ResolvedConfig
from project.config.resolvers import register_resolvers
from project.loggers.tensorboard_hparams import SUFFIX
from project.runs.run_folder import RunContext, RunFolder
from project.training.ddp.launch import run_ranks

CONF = Path(__file__).resolve().parents[2] / "conf"
Compose = Callable[..., DictConfig]

SPEED = ("speed/images_per_s", "speed/data_wait_fraction")
"""Metrics that differ between any two runs."""


class Cut(Checkpoint):
    """Callback that writes a separate checkpoint or sends a signal, after all other work at a place."""

    supports_batched_hooks = True
    due = False

    def __init__(self, places: Sequence[Place], folder: Path) -> None:
        self.places = places
        self.folder = folder
        self.every_steps = 0
        self._done: set[Place] = set()
        self._trainer: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._trainer = trainer
        for place in self.places:
            if place.hook == "between":  # groups of batches end there
                accumulate = trainer.accumulate_grad_batches
                epoch = -(-trainer.num_training_batches // accumulate)
                self.every_steps = place.epoch * epoch + place.batch // accumulate

    def on_optimizer_step(self, trainer: Any, pl_module: Any) -> None:
        """Act also within a group of batches."""
        place = self._here("signal")
        if place in self.places and trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGTERM)
        self._cut(self._here("batch"))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.on_optimizer_step(trainer, pl_module)

    def due_at(self, step: int) -> bool:
        """Act between two batches, as a `CheckpointKeeper`."""
        return self._here("between") in self.places and self._here("between") not in self._done

    def save(self, trainer: Any) -> None:
        """Save as a `CheckpointKeeper`."""
        self._cut(self._here("between"))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit":
            self._cut(self._here("validated"))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._cut(Place("epoch", trainer.current_epoch))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint(self.folder / "final.ckpt")

    def _here(self, hook: str) -> Place:
        return Place(hook, self._trainer.current_epoch, self._trainer.fit_loop.epoch_loop.batch_idx + 1)

    def _cut(self, place: Place) -> None:
        if place in self.places and place not in self._done:
            self._done.add(place)
            self._trainer.save_checkpoint(self.file(place))

    def file(self, place: Place) -> Path:
        return self.folder / f"{'-'.join(map(str, place))}.ckpt"


def check(cell: Cell, composed: Compose, work: Path, *, thorough: bool = True) -> int:
    """Run a cell, and return the number of resumed runs.

    Args:
        cell: configuration and places of interruption.
        composed: function that composes a configuration from overrides.
        work: empty folder.
        thorough: also compare the run with separate checkpoints with one without.

    Raises:
        AssertionError: a result differs from that of the uninterrupted run.
    """
    options = [option.replace("IMAGES", str(work / "images")) for option in (*COMMON, *cell.options)]
    if "data=image_folder" in cell.options:
        options = [option for option in options if not option.startswith(OF_SYNTHETIC)]
        write_images(work / "images")
    options += [f"paths.data={work}"]
    config = composed(*options, run=work / "run")
    stops = cell.places[0].hook in ("signal", "pause")
    start = work / "cut"
    run(config, cell, start, () if stops else cell.places)
    reference = result(start)
    if stops:
        check_stops(cell, config, work / "stopped", reference)
        return len(cell.places)
    if thorough:
        run(config, cell, work / "straight", ())
        differ(result(work / "straight"), reference, "writing checkpoints changed the run")
    for number, place in enumerate(cell.places):
        file = Cut((), start / "aside").file(place)
        assert file.exists(), f"the run never came by {place}"
        resumed = work / f"resumed-{number}"
        copy_run(start, resumed)
        run(config, cell, resumed, cell.places[number + 1 :] if cell.chain else (), file)
        differ(reference, result(resumed), f"resumed at {place}")
        if cell.chain:
            start = resumed
        else:
            shutil.rmtree(resumed)
    return len(cell.places)


def check_stops(cell: Cell, config: DictConfig, folder: Path, reference: dict[str, Any]) -> None:
    """Stop a run by a signal or a pause at each place, and resume it from its last checkpoint in between."""
    last = None
    for number in range(len(cell.places) + 1):
        for file in folder.glob("events.out.*"):
            if not file.name.endswith((".earlier", SUFFIX)):
                file.rename(folder / f"events.out.tfevents.{number:010d}.earlier")
        here = cell.places[number : number + 1]
        code = code_of(lambda here=here, last=last: run(config, cell, folder, here, last))
        expected = 128 + signal.SIGTERM if here and here[0].hook == "signal" else 0
        assert code == expected, f"exit code {code}, not {expected}, at {here}"
        if here and here[0].hook == "pause":
            assert RunFolder(folder).read_status()["state"] == "paused"
        last = folder / "checkpoints" / "last.ckpt"
    differ(reference, result(folder), "told to stop")


def code_of(work: Callable[[], object]) -> int:
    """Call a function in a fork, and return the exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException as error:
            code = getattr(error, "exit_code", 1)
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(
    config: DictConfig, cell: Cell, folder: Path, places: Sequence[Place], ckpt: Path | None = None
) -> None:
    """Train in `folder` as the command does."""
    config = config.copy()
    with open_dict(config):
        config.paths.run = str(folder)
        config.ckpt_path = None if ckpt is None else str(ckpt)
    for name in (".hydra", "aside"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    build = ResolvedConfig.build
    context = RunContext(RunFolder(folder), ckpt_path=config.ckpt_path, resume_force=config.resume_force)

    def with_cut(resolved: ResolvedConfig, group: str, **more: Any) -> Any:
        built = build(resolved, group, **more)
        if group != "callbacks":
            return built
        pauses = [TrialPause(place.epoch + 1) for place in places if place.hook == "pause"]
        return built | {"cut": Cut(places, folder / "aside"), **({"pause": pauses[0]} if pauses else {})}

    # Each run starts with other global random states than the run before.
    torch.manual_seed(time.time_ns() % 2**31)
    np.random.seed(time.time_ns() % 2**31)
    with mock.patch.object(ResolvedConfig, "build", with_cut):
        if cell.ranks == 1:
            train.train_rank(config, context)
        else:
            run_ranks(lambda: train.train_rank(config, context), cell.ranks)


def copy_run(source: Path, target: Path) -> None:
    """Copy a run folder, with event files dated before new ones."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("aside"))
    for number, file in enumerate(sorted(target.glob("events.out.*"))):
        file.rename(target / f"events.out.tfevents.{number:010d}.earlier")


def result(folder: Path) -> dict[str, Any]:
    """Return all results of a run, without folder names and times."""
    status = RunFolder(folder).read_status()
    curves = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    curves.Reload()
    kept = [name for name in ("best.ckpt", "last.ckpt") if (folder / "checkpoints" / name).exists()]
    return {
        "status": {key: status.get(key) for key in ("state", "value", "metrics", "weights")},
        "table": table_without_speed(folder / "metrics.csv"),
        "curves": {
            tag: [(event.step, event.value) for event in curves.Scalars(tag)]
            for tag in curves.Tags()["scalars"]
            if "speed_" not in tag
        },
        "checkpoints": {
            file.name: load(file)
            for file in (*(folder / "checkpoints" / name for name in kept), folder / "aside" / "final.ckpt")
        },
    }


def table_without_speed(file: Path) -> list[dict[str, str]]:
    """Return the table of metrics without those that depend on the machine."""
    with file.open(newline="") as stream:
        return [without_speed(row) for row in csv.DictReader(stream)]


def without_speed(node: Any) -> Any:
    """Remove the speed from names or nested values, as its values and steps differ between runs."""
    if isinstance(node, dict):
        return {key: value for key, value in node.items() if key not in SPEED}
    return [item for item in node if item not in SPEED] if is_names(node) else node


def is_names(node: Any) -> bool:
    return isinstance(node, list) and all(isinstance(item, str) for item in node)


def load(file: Path) -> dict[str, Any]:
    """Load a checkpoint without its configuration and without the names of run folders."""
    content = torch.load(file, weights_only=True)
    del content["config"]
    return without_folders(content)


def without_folders(value: Any) -> Any:
    """Make paths to checkpoints relative to a folder."""
    if isinstance(value, dict):
        return {
            without_folders(key): without_folders(one)
            for key, one in value.items()
            if key != "current_score"  # Lightning does not use or restore it
        }
    if isinstance(value, list | tuple):
        return [without_folders(one) for one in value]
    return re.sub("^/.*/(?=checkpoints)", "", value) if isinstance(value, str) else value


def differ(expected: Any, found: Any, where: str) -> None:
    """Compare two results.

    Raises:
        AssertionError: the results differ; the message says where.
    """
    expected, found = without_speed(expected), without_speed(found)
    if isinstance(expected, torch.Tensor) and isinstance(found, torch.Tensor):
        same = expected.dtype == found.dtype and expected.shape == found.shape and same_bits(expected, found)
        assert same, f"{where}: {expected} became {found}"
    elif isinstance(expected, dict) and isinstance(found, dict):
        assert set(expected) == set(found), (
            f"{where}: {sorted(map(str, expected))} became {sorted(map(str, found))}"
        )
        for key, value in expected.items():
            differ(value, found[key], f"{where}: {key}")
    elif isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        assert len(expected) == len(found), f"{where}: {expected} became {found}"
        for number, (one, two) in enumerate(zip(expected, found, strict=True)):
            differ(one, two, f"{where}: {number}")
    else:
        assert expected == found or expected != expected, f"{where}: {expected} became {found}"


def same_bits(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Return true for equal values; NaN equals NaN."""
    return torch.equal(one, two) or bool(((one == two) | ((one != one) & (two != two))).all())


def write_images(root: Path) -> None:
    """Write three classes of 12×10 JPEGs, one hue per class: 123 for training and validation, 24 for test."""
    if root.exists():
        return
    draws = np.random.default_rng(0)
    for split, count in (("train", 41), ("test", 8)):
        for label, name in enumerate(("ant", "bee", "cat")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(0, 140, (12, 10, 3), dtype=np.uint8)
                pixels[:, :, label] += 60
                Image.fromarray(pixels).save(folder / f"{number}.jpg")


@contextmanager
def composing() -> Iterator[Compose]:
    """Yield a function that composes as `scripts/train.py` does."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="train"):

        def composed(*overrides: str, run: str | Path) -> DictConfig:
            config = compose("train", list(overrides), return_hydra_config=True)
            config.hydra.runtime.output_dir = str(run)
            HydraConfig.instance().set_config(config)
            with open_dict(config):
                del config["hydra"]
            return config

        yield composed


def full(*chosen: str) -> str:
    """Run all cells, or those whose names contain the words in `chosen`."""
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    cells = {
        name: cell
        for name, cell in (SPECIAL | pairwise()).items()
        if not chosen or any(re.search(word, name) for word in chosen)
    }
    began, resumed, faults = time.monotonic(), 0, []
    with composing() as composed:
        for name, cell in cells.items():
            with tempfile.TemporaryDirectory() as folder:
                try:
                    resumed += check(cell, composed, Path(folder))
                    print(f"equal  {name}", flush=True)
                except Exception as error:
                    faults.append(f"{name}: {type(error).__name__}: {str(error)[:600]}")
                    print(f"FAULT  {faults[-1]}", flush=True)
    assert not faults, "\n".join(faults)
    seconds = time.monotonic() - began
    return f"{len(cells)} cells, {resumed} resumed runs, all bit-equal, {seconds:.0f} s"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(full(*sys.argv[1:]))
