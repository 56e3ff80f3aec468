"""Which jobs a sweep has: a grid or a search."""
