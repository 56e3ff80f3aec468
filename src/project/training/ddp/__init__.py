"""Distributed training on one machine: one forked process per device, supervised by their parent."""
