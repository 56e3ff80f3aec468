"""HTTP server of trained image classifiers: JSON answers, a page to draw on, metrics."""
