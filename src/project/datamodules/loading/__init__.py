"""Batches: order, augmentation, prefetching."""
