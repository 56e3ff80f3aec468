"""Data sets, one file each, on a common base."""
