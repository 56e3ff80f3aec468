"""Script with a task that records its starts and waits for a file, without torch: for tests of launchers.

The folder GATED_TASK holds a file per job with a line per start, and `release`, which lets the jobs end.
"""

import os
import time
from pathlib import Path

from omegaconf import DictConfig

from project.config.cli import run

CONF = Path(__file__).resolve().parents[2] / "conf"


def main(cfg: DictConfig) -> float:
    folder = Path(os.environ["GATED_TASK"])
    with (folder / f"starts_{cfg.optim.lr}").open("a") as stream:
        stream.write(f"{os.environ.get('SLURM_JOB_ID')}\n")
    while not (folder / "release").exists():
        time.sleep(0.1)
    return float(cfg.optim.lr)


if __name__ == "__main__":
    run(main, CONF, "train")
