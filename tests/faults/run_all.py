"""Full fault-injection tests: `python tests/faults/run_all.py [name …]`.

CI runs a short form of each, in the test file of the same name.
"""

import importlib
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
SHORT = [file.name.removeprefix("test_") for file in sorted(HERE.glob("test_*.py"))]
TRIALS = [Path(name).stem for name in SHORT if (HERE / name).exists()]


def main(names: list[str]) -> int:
    """Run the tests, print their results, and return the number of failures."""
    if unknown := [name for name in names if name not in TRIALS]:
        print(f"error: {unknown[0]}: no such trial; choose from {', '.join(TRIALS)}", file=sys.stderr)
        return 2
    failed = 0
    for name in names or TRIALS:
        began = time.monotonic()
        try:
            figures = importlib.import_module(name).full()
        except AssertionError as error:
            failed += 1
            figures = f"FAILED: {error}"
        print(
            f"{name} ({time.monotonic() - began:.0f} s)\n    " + figures.replace("\n", "\n    "), flush=True
        )
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
