"""TensorBoard's event files, written so that a full disk stops no training."""

import os
import socket
import time
from itertools import count
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SourceMetadata
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter

from project.runtime.files import GrowingFile, Outage

FLUSH_S = 1.0
"""Seconds after which events are written that nobody asked to write."""
_numbers = count()


class EventFile:
    """What torch's `FileWriter` wants of tensorboard's `EventFileWriter`, which has a thread that writes, and
    raises that thread's first error, a full disk too, at the next event.

    Here events are written when it is flushed, in whole records. Those that cannot be written are kept, at
    most 64 MiB of them.

    Args:
        folder: where the file is made.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._open()

    def _open(self) -> None:
        # As tensorboard names them: by time, so that readers take the files of a resumed run in their order.
        name = f"{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        outage = Outage(
            Path(self.folder) / f"events.out.tfevents.{name}",
            "events are kept until it can be written again, lost if the run ends before",
        )
        self._file = GrowingFile(outage)
        self._records = RecordWriter(_Appending(self._file))
        self._flushed = time.monotonic()
        source = SourceMetadata(writer="project.loggers.events")
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2", source_metadata=source))
        self.flush()

    def get_logdir(self) -> str:
        """The file's folder."""
        return self.folder

    def add_event(self, event: Event) -> None:
        """Add an event."""
        self._records.write(event.SerializeToString())
        if time.monotonic() - self._flushed >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write all events, if that is possible."""
        self._flushed = time.monotonic()
        self._file.flush()

    def close(self) -> None:
        """Write all events, if that is possible, even if it was not a moment ago."""
        self._file.flush(now=True)

    def reopen(self) -> None:
        """Begin another file."""
        self._open()


class _Appending:
    """A `GrowingFile` as `RecordWriter` wants it."""

    def __init__(self, file: GrowingFile) -> None:
        self.write = file.append


class _Writer(FileWriter):
    def __init__(self, folder: str) -> None:
        self.event_writer = EventFile(folder)


class Events(SummaryWriter):
    """torch's `SummaryWriter`, into an `EventFile`."""

    def _get_file_writer(self) -> FileWriter:
        if self.all_writers is None or self.file_writer is None:
            self.file_writer: Any = _Writer(str(self.log_dir))
            self.all_writers: Any = {self.file_writer.get_logdir(): self.file_writer}
        return self.file_writer
