"""How good a trained network is: what `scripts/evaluate.py` measures, shows and writes."""
