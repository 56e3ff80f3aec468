"""Pictures of what a classifier does, drawn with Pillow alone.

All take arrays, or tensors on the CPU, and return a `PIL.Image.Image`. Pillow is imported when something is
drawn, so that importing this costs nothing.
"""

from project.pictures.confusion import confusion_matrix
from project.pictures.reliability import reliability_diagram
from project.pictures.sheet import contact_sheet, to_uint8

__all__ = ["confusion_matrix", "contact_sheet", "reliability_diagram", "to_uint8"]
