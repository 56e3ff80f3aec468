"""Write a run's network as a file: `python scripts/export.py run=last format=onnx variants=all`."""

import gc

if __name__ == "__main__":
    gc.disable()  # until all is imported (project.imports.settle): importing is faster

from project import imports
from project.export.options import EXAMPLES, Options, refuse_wrong
from project.options import run_command
from project.runs.finding import find_trained


def main(options: Options) -> int:
    """Export as the command line says."""
    refuse_wrong(options)
    find_trained(options.run, options.outputs)  # what is wrong is told before torch is imported
    with imports.without_garbage_collection():
        from project.export.command import export
    return export(options)


if __name__ == "__main__":
    run_command(main, Options, EXAMPLES)
