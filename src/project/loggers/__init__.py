"""Loggers that write metrics into the run folder."""
