"""Show a running sweep or run as a page: `python scripts/watch.py last`; `--help` lists the keys."""

from project.commands import watch

if __name__ == "__main__":
    watch()
