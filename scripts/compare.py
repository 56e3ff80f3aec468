"""Rank runs: `python scripts/compare.py outputs/sweep/2026-01-31_09-30-00`."""

from project.commands import compare

if __name__ == "__main__":
    compare()
