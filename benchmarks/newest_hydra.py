"""Run the command on the newest Hydra and OmegaConf, pre-releases included.

    python benchmarks/newest_hydra.py

uv creates a temporary environment with the newest hydra-core and omegaconf, which finds all other packages in
the current one. The commands are `--help`, a run, a resumed run, a sweep and a resumed sweep; deprecation
warnings are errors. Exit codes: 0 passed, 1 failed, 77 skipped (no uv or no network).

Last result: all pass with hydra-core 1.4.0rc3 and omegaconf 2.4.1rc1.
"""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "train.py"
TINY = (
    *("model=mlp", "trainer.accelerator=cpu", "trainer.max_epochs=1"),
    *("trainer.limit_train_batches=3", "logger=none"),
)
COMMANDS: Mapping[str, Sequence[str]] = {
    "help": ("--help",),
    "run": TINY,
    "resume": ("resume=last", "trainer.max_epochs=2"),
    "sweep": ("-m", *TINY, "seed=1,2"),
    "resumed sweep": ("resume=last",),
}
SKIPPED = 77


def make_environment(folder: Path) -> Path:
    """Create an environment with the newest pre-releases and return its interpreter.

    Raises:
        OSError: uv is not installed.
        subprocess.CalledProcessError: uv failed, for example without a network.
    """
    python = folder / "bin" / "python"
    newest = ("hydra-core>=1.4.0rc1", "omegaconf>=2.4.0rc1")
    subprocess.run(["uv", "venv", "-q", "--python", sys.executable, str(folder)], check=True)
    subprocess.run(
        ["uv", "pip", "install", "-q", "--python", str(python), "--prerelease", "allow", *newest], check=True
    )
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (packages / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return python


def try_commands(python: Path, folder: Path) -> dict[str, str]:
    """Run the commands in a folder, in order.

    Returns:
        Output of the failed commands, by name.
    """
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "PYTHONWARNINGS": "error::UserWarning",
        "OMP_NUM_THREADS": "1",
    }
    failed = {}
    for name, arguments in COMMANDS.items():
        done = subprocess.run(
            [str(python), str(SCRIPT), *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        print(f"{name}: {'passed' if done.returncode == 0 else 'failed'}", flush=True)
        if done.returncode != 0:
            failed[name] = done.stdout
    return failed


def main() -> int:
    """Create the environment, run the commands and return the exit code."""
    with TemporaryDirectory() as folder:
        try:
            python = make_environment(Path(folder) / "env")
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"skipped: {error}")
            return SKIPPED
        versions = "import hydra, omegaconf; print(hydra.__version__, omegaconf.__version__)"
        subprocess.run([str(python), "-c", versions], check=True)
        failed = try_commands(python, Path(folder))
    for name, output in failed.items():
        print(f"== {name}\n{output[-4000:]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
