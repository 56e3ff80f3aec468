"""Processes, signals, devices, files, seeds and lazy imports: what every package stands on."""
