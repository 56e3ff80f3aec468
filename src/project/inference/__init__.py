"""Trained runs after training: evaluate, predict and export."""
