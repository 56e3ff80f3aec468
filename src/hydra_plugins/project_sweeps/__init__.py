"""Where Hydra looks for launchers and sweepers. The classes themselves stand in `project.sweeps`."""
