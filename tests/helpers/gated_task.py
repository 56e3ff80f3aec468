"""Script with a task that records its starts and waits for a file, without torch: for tests of launchers.

The folder GATED_TASK holds a file per job with a line per start, and `release`, which lets all jobs end;
`release_LR` lets one job end.
"""

import os
import time
from pathlib import Path

from omegaconf import DictConfig

from project.config.cli import run
from project.runtime.slurm import job_id

CONF = Path(__file__).resolve().parents[2] / "conf"


def main(cfg: DictConfig) -> float:
    folder = Path(os.environ["GATED_TASK"])
    with (folder / f"starts_{cfg.optim.lr}").open("a") as stream:
        stream.write(f"{job_id()}\n")
    while not any((folder / name).exists() for name in ("release", f"release_{cfg.optim.lr}")):
        time.sleep(0.1)
    return float(cfg.optim.lr)


if __name__ == "__main__":
    run(main, CONF, "train")
