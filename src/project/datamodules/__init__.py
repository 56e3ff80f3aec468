"""Data sets: one file each, on a common base, with the in-memory loader and batched augmentations."""
