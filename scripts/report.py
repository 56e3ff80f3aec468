"""Write an HTML page about a run or a sweep: `python scripts/report.py outputs/sweep/2026-01-31_09-30-00`."""

from project.commands import report

if __name__ == "__main__":
    report()
