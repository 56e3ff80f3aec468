"""The function that SLURM runs for one job, and the record by which job and sweep find each other.

Runs in SLURM's process, where submitit unpickles it; imports no torch.
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
from project.runtime.files import replace_text
from project.sweeps.job_process import JobMessage, JobSpec
from project.sweeps.process_engine import JobProcess
from project.sweeps.scheduler import prepare

FOLDER = ".submitit"
"""Folder of the records and of submitit's files, in the sweep's folder."""


class JobFailedError(RuntimeError):
    """A job's process ended with an error; raised so that SLURM notices."""


class SubmissionRecord:
    """Two files that tie a sweep's job to its job in SLURM.

    The sweep writes a ticket with a new token before it submits, and SLURM's id afterwards. The job writes
    facts into a file named by the token. A job whose token is not on the ticket was submitted by a sweep that
    was killed before it could note the id, and ends at once: no job runs twice.
    """

    def __init__(self, spec: JobSpec, token: str | None = None) -> None:
        self.folder = spec.folder.parent / FOLDER
        self.ticket = self.folder / f"{spec.folder.name}.json"
        self.token: str | None = token or _read(self.ticket).get("token")

    def renew(self) -> str:
        """Invalidate earlier submissions before a new one; return the new token."""
        self.token = uuid.uuid4().hex
        make_private(self.folder)
        self.write_ticket(None)
        return self.token

    def write_ticket(self, slurm_id: str | None) -> None:
        replace_text(self.ticket, json.dumps({"token": self.token, "id": slurm_id}))

    def is_current(self) -> bool:
        """Return true unless a later submission replaced this one."""
        return self.token is not None and _read(self.ticket).get("token") == self.token

    @property
    def slurm_id(self) -> str | None:
        """SLURM's id; None if nothing was submitted."""
        return _read(self.ticket).get("id") or self.facts.get("id")

    @property
    def facts(self) -> dict[str, Any]:
        """Facts that the job noted: `id`, `starts` and, at its end, `exit_code`."""
        return _read(self._facts_file)

    def note(self, **facts: Any) -> None:
        """Note facts, in the job."""
        replace_text(self._facts_file, json.dumps(self.facts | facts))

    @property
    def _facts_file(self) -> Path:
        return self.folder / f"{self.token}.json"


class SubmittedJob:
    """Function of one job, which submitit pickles and calls.

    SLURM calls it again after a time-out or a preemption, for which submitit calls `checkpoint` before, and
    after the failure of a node.
    """

    def __init__(self, spec: JobSpec, token: str, environment: Mapping[str, str], grace_s: float) -> None:
        self.spec = spec
        self.token = token
        self.environment = environment
        self.grace_s = grace_s
        self.path = list(sys.path)
        self._process: JobProcess | None = None

    def __call__(self) -> None:
        """Run the job, from its last checkpoint if it started before."""
        record, environment = SubmissionRecord(self.spec, self.token), JobEnvironment()
        if not record.is_current():
            print(f"{self.spec.folder.name}: submitted again since; this submission ends")
            return
        is_first = environment.global_rank == 0
        run = RunFolder(self.spec.folder)
        if is_first:
            starts = record.facts.get("starts", 0)
            if starts:
                prepare(run, self.spec.config)
            record.note(id=environment.job_id, starts=starts + 1)
        elif (newest := run.newest_checkpoint().path) is not None:
            self.spec.config.ckpt_path = str(newest.absolute())
        variables = {**self.environment, **rank_variables(environment)}
        message = JobMessage(self.spec, variables, os.getpid(), self.path)
        process = self._process = JobProcess.start_fresh(message)
        try:
            code = process.wait()
        finally:
            process.stop(self.grace_s)
        if is_first:
            record.note(exit_code=code)
        if code:
            raise JobFailedError(f"exit code {code}; see {self.spec.folder}")

    def checkpoint(self) -> DelayedSubmission:
        """Stop the job, which saves, and have SLURM call it again."""
        if self._process is not None:
            self._process.stop(self.grace_s)
            self._process = None
        return DelayedSubmission(self)


def make_private(folder: Path) -> None:
    """Make a folder for its owner alone: its files are unpickled, and may hold secrets."""
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)


def rank_variables(environment: JobEnvironment) -> dict[str, str]:
    """Return torchrun's variables where SLURM started all ranks; none for a process that forks its ranks."""
    if environment.num_tasks == 1:
        return {}
    digits = "".join(filter(str.isdigit, environment.raw_job_id))
    return {
        "RANK": str(environment.global_rank),
        "LOCAL_RANK": str(environment.local_rank),
        "WORLD_SIZE": str(environment.num_tasks),
        "LOCAL_WORLD_SIZE": str(environment.num_tasks // environment.num_nodes),
        "NODE_RANK": str(environment.node),
        "GROUP_RANK": str(environment.node),
        "MASTER_ADDR": environment.hostnames[0] if environment.num_nodes > 1 else "127.0.0.1",
        "MASTER_PORT": str(15000 + int(digits) % 10000),
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
