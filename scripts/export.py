"""Write a run's network as a file: `python scripts/export.py run=last format=onnx variants=all`."""

from project.commands import export

if __name__ == "__main__":
    export()
