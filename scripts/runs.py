"""List, filter, tag and export runs: `python scripts/runs.py state=done`; `--help` lists the keys."""

from project.commands import runs

if __name__ == "__main__":
    runs()
