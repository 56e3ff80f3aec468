"""What submitit runs for one job of a sweep, and the record by which job and sweep find each other.

Imported in the cluster's process too, where submitit loads the job: needs no torch.
"""

import json
import os
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from submitit import JobEnvironment
from submitit.helpers import DelayedSubmission

from project.runs.run_folder import RunFolder
from project.sweeps.job_process import Letter, Order
from project.sweeps.launchers.nested import Nested
from project.sweeps.scheduler import prepare

FOLDER = ".submitit"
"""In the sweep's folder: all that submitit and the records need."""


class JobFailedError(RuntimeError):
    """A job's process ended with an error. Raised for SLURM to see a failed job, too."""


class Record:
    """Which of the cluster's jobs is a sweep's job, in two files.

    The sweep writes a ticket with a new token before it submits, and the cluster's id when it has one. The
    job writes the rest into a file of the token's name. A job whose token is not the ticket's any more was
    submitted by a sweep that was killed before it could note the id, and ends at once: no job runs twice.

    Args:
        order: the job.
        token: of this submission; None: the ticket's.
    """

    def __init__(self, order: Order, token: str | None = None) -> None:
        self.folder = order.folder.parent / FOLDER
        self.ticket = self.folder / f"{order.folder.name}.json"
        self.token: str | None = token or _read(self.ticket).get("token")

    def renew(self) -> str:
        """Make earlier submissions void, before a new one."""
        self.token = uuid.uuid4().hex
        private(self.folder)
        _write(self.ticket, token=self.token)
        return self.token

    def submitted(self, cluster_id: str) -> None:
        """Note the cluster's id."""
        _write(self.ticket, token=self.token, id=cluster_id)

    def is_current(self) -> bool:
        """Whether no later submission has taken this one's place."""
        return self.token is not None and _read(self.ticket).get("token") == self.token

    @property
    def cluster_id(self) -> str | None:
        """The cluster's id, None if nothing was submitted."""
        return _read(self.ticket).get("id") or self.facts.get("id")

    @property
    def facts(self) -> dict[str, Any]:
        """What the job itself has noted: `id`, `starts`, and at its end `exit_code`."""
        return _read(self._file)

    def note(self, **facts: Any) -> None:
        """Note facts, in the job."""
        _write(self._file, **(self.facts | facts))

    @property
    def _file(self) -> Path:
        return self.folder / f"{self.token}.json"


class SubmittedJob:
    """One job of a sweep, for submitit to pickle and call.

    It is called again when SLURM runs the job anew: after a time-out or a preemption (then submitit has
    called `checkpoint` before), or after a node has failed.

    Args:
        order: the job.
        token: of the record.
        environment: variables to set.
        grace_s: seconds that the job has to stop before its time is over.
        path: where Python finds modules.
    """

    def __init__(
        self,
        order: Order,
        token: str,
        environment: Mapping[str, str],
        grace_s: float,
    ) -> None:
        self.order = order
        self.token = token
        self.environment = environment
        self.grace_s = grace_s
        self.path = list(sys.path)
        self._nested: Nested | None = None

    def __call__(self) -> None:
        """Run the job, or let it go on from its last checkpoint.

        Raises:
            JobFailedError: it ended with an error.
        """
        record, place = Record(self.order, self.token), JobEnvironment()
        if not record.is_current():
            print(f"{self.order.folder.name}: submitted again since; this one ends")
            return
        first = place.global_rank == 0
        self._go_on(record, place.job_id, first=first)
        environment = {**self.environment, **rank_variables(place)}
        letter = Letter(self.order, environment, os.getpid(), self.path)
        nested = self._nested = Nested(letter)
        try:
            code = nested.wait()
        finally:
            nested.stop(self.grace_s)
        if first:
            record.note(exit_code=code)
        if code:
            raise JobFailedError(f"exit code {code}; see {self.order.folder}")

    def checkpoint(self) -> DelayedSubmission:
        """Stop the job, whose last checkpoint is that of its last epoch, and have it called again."""
        if self._nested is not None:
            self._nested.stop(self.grace_s)
            self._nested = None
        return DelayedSubmission(self)

    def _go_on(self, record: Record, cluster_id: str, *, first: bool) -> None:
        """Continue where an earlier start of this submission ended, if there was one."""
        run = RunFolder(self.order.folder)
        if first:
            starts = record.facts.get("starts", 0)
            if starts:
                prepare(run, self.order.config)
            record.note(id=cluster_id, starts=starts + 1)
        elif (newest := run.newest_checkpoint().path) is not None:
            self.order.config.ckpt_path = str(newest.absolute())


def private(folder: Path) -> None:
    """Make a folder that its owner alone can look into and write to: what lies there is unpickled, and may
    hold secrets.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)


def rank_variables(place: JobEnvironment) -> dict[str, str]:
    """Where the cluster has started all ranks: torchrun's variables, which torch and Lightning look for.

    A single process forks its ranks itself and gets none.
    """
    if place.num_tasks == 1:
        return {}
    on_node = place.num_tasks // place.num_nodes
    digits = "".join(filter(str.isdigit, place.raw_job_id))
    return {
        "RANK": str(place.global_rank),
        "LOCAL_RANK": str(place.local_rank),
        "WORLD_SIZE": str(place.num_tasks),
        "LOCAL_WORLD_SIZE": str(on_node),
        "NODE_RANK": str(place.node),
        "GROUP_RANK": str(place.node),
        "MASTER_ADDR": place.hostnames[0] if place.num_nodes > 1 else "127.0.0.1",
        "MASTER_PORT": str(15000 + int(digits) % 10000),
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _write(file: Path, **facts: Any) -> None:
    partial = file.with_suffix(".json.partial")
    partial.write_text(json.dumps(facts))
    partial.replace(file)
