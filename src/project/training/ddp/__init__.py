"""Distributed training on one machine: one forked process per device, with a supervising parent."""
