"""Train one run, or with -m many: `python scripts/train.py model=cnn optim=adam`."""

if __name__ == "__main__":
    from project.runtime.process import begin_command

    begin_command()

from pathlib import Path

from omegaconf import DictConfig

from project.config import cli

CONF = Path(__file__).resolve().parent.parent / "conf"


def main(cfg: DictConfig) -> float | None:
    """Run one job with its composed configuration."""
    from project.train import train  # imports torch: only now, when the configuration has been checked

    return train(cfg)


if __name__ == "__main__":
    cli.run(main, CONF, "train")
