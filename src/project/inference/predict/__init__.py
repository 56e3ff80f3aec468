"""Prediction of image files with a trained network."""
