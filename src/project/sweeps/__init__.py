"""Sweeps (many runs from one command): scheduler, launchers and sweepers."""
