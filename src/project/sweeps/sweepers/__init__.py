"""Sweepers: which jobs a sweep runs."""
