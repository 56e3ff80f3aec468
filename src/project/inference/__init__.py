"""Use of trained runs: evaluate, predict and export."""
