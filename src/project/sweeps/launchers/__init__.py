"""Launchers, which run the jobs of a sweep."""
