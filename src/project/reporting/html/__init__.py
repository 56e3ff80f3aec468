"""One HTML page about a run or a sweep, without requests to anywhere else."""
