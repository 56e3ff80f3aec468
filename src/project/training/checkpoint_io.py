"""How Lightning's checkpoints come to the disk and back."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io import TorchCheckpointIO

from project.runs import checkpoint_files
from project.runs.checkpoints import dump, read, require_loadable, save, size

REST_S = 2.0
"""Seconds between two writes of the same file."""

MOST_BYTES_HELD = 2**28
"""Of a checkpoint that waits for its turn; larger ones are written at once."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Whole, checked files: see `project.runs.checkpoint_files`.

    A checkpoint that follows the one before it within `REST_S` seconds waits in memory, and is written with
    the next one or at the end, in the order in which they came. So runs with short epochs do not spend their
    time waiting for the disk.
    """

    def __init__(self) -> None:
        self._written: dict[Path, float] = {}
        self._waiting: dict[Path, memoryview] = {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save, now or soon.

        Raises:
            InputError: it would hold what cannot be read again.
            CheckpointError: the file cannot be written.
        """
        path = Path(path)
        if path not in self._written:
            checkpoint_files.sweep(path.parent)
        self._waiting.pop(path, None)
        held = size(checkpoint) <= MOST_BYTES_HELD
        if time.monotonic() - self._written.get(path, -REST_S) < REST_S and held:
            self._waiting[path] = dump(checkpoint)
            return
        self.flush()
        if not self._written:
            require_loadable(dump(checkpoint))
        self._write(path, lambda stream: save(checkpoint, stream), size(checkpoint))

    def flush(self) -> None:
        """Write what waits.

        Raises:
            CheckpointError: a file cannot be written.
        """
        while self._waiting:
            path, content = next(iter(self._waiting.items()))
            del self._waiting[path]
            self._write(path, lambda stream, content=content: stream.write(content), len(content))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint to the CPU; only plain values and tensors, whatever `weights_only` says.

        Raises:
            InputError: it is damaged, or no file of this machine.
        """
        self.flush()
        return read(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its checksum."""
        self._waiting.pop(Path(path), None)
        checkpoint_files.remove(Path(path))

    def teardown(self) -> None:
        """Write what waits: training is over."""
        self.flush()

    def _write(self, path: Path, write: Callable[..., object], count: int) -> None:
        checkpoint_files.write(path, write, count)
        self._written[path] = time.monotonic()
