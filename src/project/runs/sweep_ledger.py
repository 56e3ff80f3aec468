"""The record of a sweep's jobs: a file that only grows, so that the sweep can be killed at any moment."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from project.errors import InputError
from project.runs.sweep_jobs import Job
from project.runtime.files import Outage
from project.runtime.secrets import redact


class Ledger:
    """File with a JSON line for each change of a job, of which the last one counts.

    A line is on the disk when `write` returns. A line without an end, of a killed process, is dropped. A line
    that cannot be written is reported, and written with the next one.

    Args:
        file: path of the record.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._unwritten: list[Job] = []
        self._outage = Outage(file, "the sweep continues, the jobs' folders hold their results")

    def read(self) -> dict[int, Job]:
        """Return the jobs by number, in order.

        Raises:
            InputError: a line is damaged, other than a torn last one.
        """
        jobs: dict[int, Job] = {}
        if self.file.exists():
            for number, line in enumerate(self.file.read_bytes().split(b"\n")[:-1], start=1):
                try:
                    job = Job(**json.loads(line.decode()))
                except (ValueError, TypeError) as error:
                    raise InputError(
                        f"{self.file}: line {number} is damaged; remove it: earlier lines and the job's "
                        "folder hold its state"
                    ) from error
                jobs[job.number] = job
        jobs |= {job.number: job for job in self._unwritten}
        return dict(sorted(jobs.items()))

    @property
    def outage(self) -> str:
        """Reason why jobs could not be recorded, after one more try; empty if all are on record."""
        if self._unwritten:
            self.write()
        return self._outage.reason

    def write(self, *jobs: Job) -> None:
        """Record the present state of jobs.

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
        lines = "".join(json.dumps(redact(asdict(job))) + "\n" for job in jobs).encode()
        partial = self.file.with_suffix(".jsonl.partial")
        is_new = not self.file.exists()
        drop_torn_line(self.file)
        with partial.open("wb") if is_new else self.file.open("ab") as stream:
            stream.write(lines)
            stream.flush()
            os.fsync(stream.fileno())
        if is_new:  # all of a sweep's first jobs are on record, or none
            partial.replace(self.file)


def drop_torn_line(file: Path) -> None:
    """Truncate a file after its last complete line, if there is such a file."""
    if not file.exists():
        return
    with file.open("rb+") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size and os.pread(stream.fileno(), 1, size - 1) != b"\n":
            os.ftruncate(stream.fileno(), stream.read().rfind(b"\n") + 1)
