"""The run folder: all that a run is."""
