"""Lists of runs: filter, sort, tags and notes, and the live page of `watch.py` and `runs.py`."""
