"""Trained networks as files that need nothing of this project: written, checked, measured, made smaller."""
