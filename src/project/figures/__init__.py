"""Pictures of what a classifier does, drawn with Pillow alone.

All take arrays, or tensors on the CPU, and return a `PIL.Image.Image`. Pillow is imported when something is
drawn, so that importing this costs nothing.
"""

from project.figures.confusion_matrix import confusion_matrix
from project.figures.contact_sheet import contact_sheet, to_uint8
from project.figures.reliability_diagram import reliability_diagram

__all__ = ["confusion_matrix", "contact_sheet", "reliability_diagram", "to_uint8"]
