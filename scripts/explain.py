"""Explain predictions of a trained run: `python scripts/explain.py run=last`; `--help` lists the keys."""

from project.commands import explain

if __name__ == "__main__":
    explain()
