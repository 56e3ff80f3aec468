"""Repeat the training step of a run that stopped with a NaN or infinite value."""
