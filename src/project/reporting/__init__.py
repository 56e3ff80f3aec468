"""Reports about runs and sweeps: an HTML page, and the comparison of runs."""
