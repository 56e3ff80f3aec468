"""Write a page about a data set: `python scripts/data.py data=mnist`; `--help` lists the keys."""

from project.commands import data

if __name__ == "__main__":
    data()
