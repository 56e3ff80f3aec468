"""One process for each device of a run: started, watched over and ended together."""
