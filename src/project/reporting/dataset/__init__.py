"""One HTML page about a data set: classes, images, duplicates, and labels that are likely wrong."""
