"""Write a run's network as a file: `python scripts/export.py run=last format=onnx variants=all`."""

import gc

if __name__ == "__main__":
    gc.disable()  # until all is imported (project.runtime.lazy_imports.freeze_gc): importing is faster

    from project.runtime import signals

    signals.exit_on_signal()

from dataclasses import replace

from project.config.command_options import run_command
from project.inference.export.options import EXAMPLES, Options, find_places
from project.inference.run_config import check_request
from project.runtime import lazy_imports


def main(options: Options) -> int:
    """Check the options without torch, then export."""
    run, _ = find_places(options)  # before torch is imported
    check_request(run, options.weights, [*options.data, *options.paths])
    with lazy_imports.gc_disabled():
        from project.inference.export.command import export
    return export(replace(options, run=str(run.path)))


if __name__ == "__main__":
    run_command(main, Options, EXAMPLES)
