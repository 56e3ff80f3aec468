"""Trials of one input: in this process, in a fork, or in a new process."""

import gc
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import wrong_presets

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
SCRIPT = ROOT / "scripts" / "train.py"
SEVERAL = {"optim.lr=-1 data.batch_size=x mode=up": 3}
"""Inputs with several mistakes, and their numbers of error lines."""
SECONDS_EACH = 120
ACCEPTED = "accepted"


class Outcome(NamedTuple):
    """Outcome of one input.

    Args:
        arguments: arguments of the command line.
        code: exit code, negative for a signal.
        errors: lines on standard error.
        output: standard output.
        left: remaining files and folders.
        torch: true if torch was imported.
        seconds: duration [s].
        cpu_seconds: CPU time [s], of a new process only.
    """

    arguments: str
    code: int
    errors: list[str]
    output: str
    left: list[str]
    torch: bool
    seconds: float
    cpu_seconds: float = 0.0


def problem_of(outcome: Outcome, says: tuple[str, ...]) -> str:
    """Return what is wrong with the refusal of a bad input, else an empty string."""
    told = " | ".join(outcome.errors) or outcome.output
    if outcome.code not in (2, 3):
        return f"exit code {outcome.code}: {told}"
    errors = [line for line in outcome.errors if not line.startswith("note: ")]
    if len(errors) != SEVERAL.get(outcome.arguments, 1):
        return f"{len(errors)} lines: {told}"
    if strange := [line for line in errors if not re.match(r"(error|usage): \S", line)]:
        return f"not a line of ours: {strange[0]}"
    if missing := [text for text in says if text not in told]:
        return f"{missing[0]!r} is not said: {told}"
    if outcome.left:
        return f"left behind: {outcome.left}"
    if outcome.torch:
        return f"torch was imported: {told}"
    return ""


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder. A fork would remove that of `tempfile.TemporaryDirectory` at its end."""
    folder = Path(tempfile.mkdtemp(prefix="inputs-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def fixtures() -> Iterator[Path]:
    """Make the folder that inputs name FILES."""
    with temporary_folder() as root:
        (root / "text.txt").write_text("no images, no weights\n")
        rows = [f"{n},{n % 7},{n % 2},{n % 3 % 2},{'cd'[n % 2]},{n / 10}" for n in range(60)]
        (root / "table.csv").write_text("\n".join(["a,b,x,y,kind,size", *rows]))
        (root / "empty").mkdir()
        (root / "empty.ckpt").touch()
        _photos(root / "photos", {"ant": 20, "bee": 20, "cat": 20})
        _photos(root / "one_class", {"ant": 3})
        _photos(root / "no_images", {"ant": 0, "bee": 0})
        _photos(root / "unequal", {"ant": 3, "bee": 3}, sides=(8, 9))
        _photos(root / "damaged", {"ant": 20, "bee": 20})
        (root / "damaged" / "ant" / "0.png").write_text("no image")
        for folder, text in (("run_without_checkpoint", "seed: 1\n"), ("damaged_run", "seed: [1\n")):
            (root / folder / ".hydra").mkdir(parents=True)
            for file in ("config.yaml", "hydra.yaml"):
                (root / folder / ".hydra" / file).write_text(text)
        (root / "damaged_run" / "checkpoints").mkdir()
        (root / "damaged_run" / "checkpoints" / "last.ckpt").write_text("damaged too")
        for kind, line in (
            ("bad_syntax", "optim.lr=[1"),
            ("bad_key", "optim.lrr=1"),
            ("bad_value", "optim.lr=fast"),
            ("repeated", "optim.lr=0.1 optim.lr=0.2"),
            ("none", "# nothing"),
        ):
            (root / f"points_{kind}.txt").write_text(f"{line}\n")
        wrong_presets.write(root / "own")
        yield root


def _photos(root: Path, classes: dict[str, int], sides: tuple[int, ...] = (8,)) -> None:
    from PIL import Image

    for shade, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            side = sides[number % len(sides)]
            Image.new("RGB", (side, side), (80 * shade, number, 0)).save(root / name / f"{number}.png")


def fork(arguments: str, files: Path, task: Callable[..., object]) -> Outcome:
    """Try one input in a fork of this process, in an empty folder."""
    with temporary_folder() as beside:
        folder = beside / "empty"
        folder.mkdir()
        before = time.monotonic()
        process = os.fork()
        if process == 0:
            _become(arguments, files, folder, task)
        status = _wait(process)
        took = time.monotonic() - before
        return Outcome(
            arguments,
            os.waitstatus_to_exitcode(status),
            _lines((beside / "errors").read_text(), files),
            (beside / "output").read_text(),
            sorted(str(path.relative_to(folder)) for path in folder.rglob("*")),
            (beside / "torch").exists(),
            took,
        )


def _lines(text: str, files: Path) -> list[str]:
    return text.replace(str(files), "FILES").splitlines()


def split(arguments: str, files: Path) -> list[str]:
    """Split a command line as a shell does."""
    return [text.replace("FILES", str(files)) for text in shlex.split(arguments)]


def _wait(process: int) -> int:
    deadline = time.monotonic() + SECONDS_EACH
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    return os.waitpid(process, 0)[1]


def _become(arguments: str, files: Path, folder: Path, task: Callable[..., object]) -> NoReturn:
    beside = folder.parent
    try:
        os.chdir(folder)
        for number, name in ((1, "output"), (2, "errors")):
            target = os.open(beside / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(target, number)
        sys.argv = [str(SCRIPT), *split(arguments, files)]
        leave = os._exit

        def note_and_leave(code: int) -> NoReturn:
            if "torch" in sys.modules:
                (beside / "torch").touch()
            leave(code)

        os._exit = note_and_leave  # type: ignore[assignment]  # as project.config.cli ends a process
        from project.config import cli

        cli.run(task, CONF, "train")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(70)


def accept(cfg: Any) -> None:
    """Replace the training of an accepted input."""
    print(ACCEPTED)


class Composing:
    """Check of inputs within this process, for inputs that are refused by their configuration.

    Hydra reads and merges all files for each command; `Composer` caches them.
    """

    def __init__(self) -> None:
        from hydra._internal.hydra import Hydra
        from hydra._internal.utils import create_config_search_path
        from hydra.core.global_hydra import GlobalHydra
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from project.sweeps.compose import Composer

        GlobalHydra.instance().clear()
        hydra = Hydra.create_main_hydra2("train", create_config_search_path(str(CONF)))
        master = hydra.compose_config("train", [], run_mode=RunMode.RUN)
        GlobalHydra.instance().clear()  # forks initialize their own
        self.composer = Composer(hydra.config_loader, master)
        self.config = HydraConfig.instance()

    def try_one(self, arguments: str, files: Path) -> Outcome | None:
        """Return the refusal of an input; None if its configuration alone is not refused."""
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        from project.config.derived_values import complete
        from project.config.suggestions import explain_composition
        from project.config.validation import find_problems
        from project.config.validation.command_request import last_of_each, refuse_wrong_arguments
        from project.config.validation.paths import find_misplaced_outputs
        from project.errors import InputError
        from project.runtime import torchrun

        overrides = split(arguments, files)
        before = time.monotonic()
        try:
            overrides, _ = last_of_each(overrides, CONF / "train.yaml")
            refuse_wrong_arguments(overrides)
            config = self.composer.compose(overrides, 0)
            config.hydra.runtime.output_dir = "outputs/run"
            self.config.set_config(config)
            complete(config)
            lines = list(dict.fromkeys(find_problems(config)))
            lines = lines or [*find_misplaced_outputs(config), *torchrun.find_mismatch(config)]
        except InputError as error:
            lines = str(error).splitlines()
        except (HydraException, OmegaConfBaseException) as error:
            lines = explain_composition(error, overrides, CONF, "train")
        except ValueError:  # of Hydra, for inputs that the command refuses earlier
            return None
        if not lines:
            return None
        took = time.monotonic() - before
        errors = _lines("\n".join(f"error: {line}" for line in lines), files)
        return Outcome(arguments, 2, errors, "", [], has_torch(), took)


def has_torch() -> bool:
    """Return true if this process has imported torch."""
    return "torch" in sys.modules


def warm_up() -> None:
    """Import the modules of every start once for all forks."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from project.config import cli, hydra_patches, preflight, validation
    from project.config.resolvers import register_resolvers
    from project.sweeps.launchers import local
    from project.sweeps.sweepers import base

    assert all((validation, cli, preflight, local, base))
    register_resolvers()
    hydra_patches.compose_faster()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        compose("train", ["model=mlp"], return_hydra_config=True)
    GlobalHydra.instance().clear()
    gc.disable()  # as the command does
    gc.freeze()


def command(arguments: str, files: Path, python: tuple[str, ...] = ()) -> Outcome:
    """Try one input as users do: in a new process and an empty folder."""
    with temporary_folder() as folder:
        before, computed = time.monotonic(), _computed()
        done = subprocess.run(
            [sys.executable, *python, str(SCRIPT), *split(arguments, files)],
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=SECONDS_EACH,
            check=False,
        )
        took, computed = time.monotonic() - before, _computed() - computed
        left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        return Outcome(
            arguments, done.returncode, _lines(done.stderr, files), done.stdout, left, False, took, computed
        )


def _computed() -> float:
    """Return the CPU time of all awaited child processes [s]."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def environment() -> dict[str, str]:
    """Return the environment of new processes, without GPUs, which some inputs request."""
    places = [str(ROOT / "src"), str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(places)}
