"""Ranked runs as a table, a CSV file and a figure."""
