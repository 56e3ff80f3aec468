"""The record of a sweep's jobs: a file that only grows, so that no moment is a bad one to be killed at."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from project.errors import InputError
from project.runs.sweep_jobs import Job
from project.runtime.files import Outage
from project.runtime.secrets import redact


class Ledger:
    """One JSON line for each change of a job; the last line of a job counts.

    A line is on the disk when `write` returns. Whoever is killed before leaves a line without an end, which
    is dropped. A line that cannot be written is told of, and written with the next one.

    Args:
        file: the record.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._unwritten: list[Job] = []
        self._outage = Outage(
            file,
            "the sweep goes on, what becomes of its jobs stands in their folders",
        )

    def read(self) -> dict[int, Job]:
        """Jobs by number, in order.

        Raises:
            InputError: a line is damaged. A last one that is torn does not count.
        """
        jobs: dict[int, Job] = {}
        if self.file.exists():
            for number, line in enumerate(self.file.read_bytes().split(b"\n")[:-1], start=1):
                try:
                    job = Job(**json.loads(line.decode()))
                except (ValueError, TypeError) as error:
                    raise InputError(
                        f"{self.file}: line {number} is damaged; remove it: earlier lines and the job's "
                        "folder tell of the job"
                    ) from error
                jobs[job.number] = job
        jobs |= {job.number: job for job in self._unwritten}
        return dict(sorted(jobs.items()))

    @property
    def outage(self) -> str:
        """Why jobs could not be recorded, after one more try; empty if they all are."""
        if self._unwritten:
            self.write()
        return self._outage.reason

    def write(self, *jobs: Job) -> None:
        """Record jobs as they are now.

        Raises:
            OSError: there is no record yet, and none can be made.
        """
        self._unwritten += [replace(job) for job in jobs]
        try:
            self._append(self._unwritten)
        except OSError as error:
            if not self.file.exists():
                raise
            self._outage.begin(error)
        else:
            self._unwritten = []
            self._outage.end()

    def _append(self, jobs: Sequence[Job]) -> None:
        lines = "".join(json.dumps(redact(job.as_dict())) + "\n" for job in jobs).encode()
        partial = self.file.with_suffix(".jsonl.partial")
        new = not self.file.exists()
        drop_torn_line(self.file)
        with partial.open("wb") if new else self.file.open("ab") as stream:
            stream.write(lines)
            stream.flush()
            os.fsync(stream.fileno())
        if new:  # all of a sweep's first jobs are on record, or none
            partial.replace(self.file)


def drop_torn_line(file: Path) -> None:
    """Cut a file that grows by lines after its last whole one; there may be no such file."""
    if not file.exists():
        return
    with file.open("rb+") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size and os.pread(stream.fileno(), 1, size - 1) != b"\n":
            os.ftruncate(stream.fileno(), stream.read().rfind(b"\n") + 1)
