"""Write a run's network as a file: `python scripts/export.py run=last format=onnx variants=all`."""

import gc

if __name__ == "__main__":
    gc.disable()  # until all is imported (project.imports.settle): importing is faster

    from project import stopping

    stopping.end_at_once()

from dataclasses import replace

from project import imports
from project.export.options import EXAMPLES, Options, find_places
from project.options import run_command
from project.run_config import refuse_wrong


def main(options: Options) -> int:
    """Export as the command line says."""
    run, _ = find_places(options)  # what is wrong is told before torch is imported
    refuse_wrong(run, options.weights, [*options.data, *options.paths])
    with imports.without_garbage_collection():
        from project.export.command import export
    return export(replace(options, run=str(run.path)))


if __name__ == "__main__":
    run_command(main, Options, EXAMPLES)
