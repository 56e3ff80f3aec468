"""Find the layer with a run's first NaN: `python scripts/replay.py run=last`; `--help` lists the keys."""

from project.commands import replay

if __name__ == "__main__":
    replay()
