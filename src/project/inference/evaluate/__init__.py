"""Evaluation of trained networks: metrics, intervals, figures."""
