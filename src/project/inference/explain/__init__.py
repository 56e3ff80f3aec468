"""Explanations of single predictions: saliency maps and the nearest training images."""
