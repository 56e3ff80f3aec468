"""Launchers under the name that Hydra requires. Imported at every start: nothing heavy above."""

from project.sweeps.local import LocalProcesses


class LocalLauncher(LocalProcesses):
    """`hydra/launcher=local`."""
