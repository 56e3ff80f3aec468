"""Foundations of all packages: processes, signals, devices, files, seeds and lazy imports."""
