"""Runs inside a SLURM job: requeueing the job, and finding the run again after its restart."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from project.runtime.secrets import redact

REQUEUE_LIMIT_S = 60.0


def job_id() -> str | None:
    """Return the SLURM job of this process as `scontrol` takes it; None outside of SLURM."""
    variables = os.environ
    if "SLURM_ARRAY_JOB_ID" in variables:  # one task's own number may be that of the whole array
        return f"{variables['SLURM_ARRAY_JOB_ID']}_{variables.get('SLURM_ARRAY_TASK_ID', '0')}"
    return variables.get("SLURM_JOB_ID")


def requeue() -> None:
    """Have SLURM start this job again, and report it; do nothing outside of SLURM.

    Call it last: SLURM ends the remaining processes of the job at once.
    """
    if (job := job_id()) is None:
        return
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=REQUEUE_LIMIT_S, check=False)
        failed, refusal = done.returncode != 0, " ".join((done.stderr or done.stdout).split())
    except (OSError, subprocess.TimeoutExpired) as error:
        failed, refusal = True, str(error)
    if failed:
        print(f"SLURM does not requeue job {job} ({refusal}); submit it with --requeue", file=sys.stderr)
    else:
        print(f"SLURM will start job {job} again", file=sys.stderr)


def find_run(wanted: Path, *, same_name: bool = False) -> Path | None:
    """Return the folder of the run that the same command of this job began before the job's restart.

    The status identifies the run: a folder of the right name may be anything. The folder has the parent of
    `wanted`, the folder that the run would have now; with `same_name` its name, too, or that with -2, -3, ….
    """
    job = job_id()
    if job is None or os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return None
    command = redact(sys.argv)  # as the status has it
    found: list[tuple[str, Path]] = []
    for file in wanted.parent.glob("*/status.json"):
        if same_name and re.sub(r"-\d+$", "", file.parent.name.removeprefix(wanted.name)):
            continue
        try:
            status: Any = json.loads(file.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(status, dict) and (status.get("slurm_job"), status.get("command")) == (job, command):
            found.append((str(status.get("started")), file.parent))
    return max(found)[1] if found else None
