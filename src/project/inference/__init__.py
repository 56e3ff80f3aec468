"""Load a trained run, and evaluate it, predict with it or export it."""
