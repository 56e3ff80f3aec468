"""Data modules: one file per data set, on a common base class."""
