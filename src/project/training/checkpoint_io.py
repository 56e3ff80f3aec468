"""Checkpoint I/O plugin for Lightning: atomic writes, checksums, only plain values."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io import TorchCheckpointIO

from project.runs import checkpoint_files
from project.runs.checkpoint_files import dump, read, require_loadable, save, size

MIN_INTERVAL_S = 2.0
"""Minimum time between two writes of the same file, s."""

MAX_DELAYED_BYTES = 2**28
"""Checkpoint size above which writes are not delayed, bytes."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically and verifies them (`project.runs.checkpoint_files`).

    A checkpoint that replaces a file written less than `MIN_INTERVAL_S` ago is kept in memory, and written
    before the next file or at the end. Runs with short epochs thus do not wait for the disk.
    """

    def __init__(self) -> None:
        self._written: dict[Path, float] = {}
        self._delayed: dict[Path, memoryview] = {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint, or keep it in memory for a delayed write.

        Raises:
            InputError: a value of the checkpoint could not be loaded with `weights_only=True`.
            CheckpointError: the file cannot be written.
        """
        path = Path(path)
        if path not in self._written:
            checkpoint_files.remove_partial(path.parent)
        self._delayed.pop(path, None)
        is_small = size(checkpoint) <= MAX_DELAYED_BYTES
        if time.monotonic() - self._written.get(path, -MIN_INTERVAL_S) < MIN_INTERVAL_S and is_small:
            self._delayed[path] = dump(checkpoint)
            return
        self.flush()
        if not self._written:
            require_loadable(dump(checkpoint))
        self._write(path, lambda stream: save(checkpoint, stream), size(checkpoint))

    def flush(self) -> None:
        """Write delayed checkpoints.

        Raises:
            CheckpointError: a file cannot be written.
        """
        while self._delayed:
            path, content = next(iter(self._delayed.items()))
            del self._delayed[path]
            self._write(path, lambda stream, content=content: stream.write(content), len(content))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Load a checkpoint to the CPU; always as with `weights_only=True`.

        Raises:
            InputError: the file is damaged, or is not a local file.
        """
        self.flush()
        return read(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        self._delayed.pop(Path(path), None)
        checkpoint_files.remove(Path(path))

    def teardown(self) -> None:
        self.flush()

    def _write(self, path: Path, write: Callable[..., object], count: int) -> None:
        checkpoint_files.write(path, write, count)
        self._written[path] = time.monotonic()
