"""Sweepers, which choose the jobs of a sweep."""
