"""Figures: contact sheets, confusion matrices, reliability diagrams, charts.

Functions import Pillow and matplotlib when they are called.
"""

from project.figures.classification import confusion_matrix, reliability_diagram
from project.figures.contact_sheet import contact_sheet, to_uint8

__all__ = ["confusion_matrix", "contact_sheet", "reliability_diagram", "to_uint8"]
