"""Composition, checks and instantiation of configurations."""
