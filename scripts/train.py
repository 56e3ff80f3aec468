"""Train one run, or with -m many: `python scripts/train.py model=cnn optim=adam`."""

from project.commands import train

if __name__ == "__main__":
    train()
