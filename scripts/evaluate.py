"""Evaluate a trained run: `python scripts/evaluate.py run=last`; `--help` lists the keys."""

from project.commands import evaluate

if __name__ == "__main__":
    evaluate()
