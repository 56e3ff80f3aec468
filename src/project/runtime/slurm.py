"""SLURM jobs: requeue the job of a run, and find the run after the restart of its job."""

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
    """Return the SLURM job of this process in the form for `scontrol`; None outside SLURM."""
    variables = os.environ
    if "SLURM_ARRAY_JOB_ID" in variables:  # SLURM_JOB_ID of one task may be the id of the array
        return f"{variables['SLURM_ARRAY_JOB_ID']}_{variables.get('SLURM_ARRAY_TASK_ID', '0')}"
    return variables.get("SLURM_JOB_ID")


def requeue() -> None:
    """Have SLURM requeue this job, and print the outcome; do nothing outside SLURM.

    Call this last: SLURM ends the remaining processes of the job at once.
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
    """Return the run folder that the same command made before SLURM restarted this job; None without one.

    The status in the folder must have the same job and command.

    Args:
        wanted: folder that a new run would have; folders in the same parent are searched.
        same_name: only search folders with that name, or that name and -2, -3, ….
    """
    job = job_id()
    if job is None or os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return None
    command = redact(sys.argv)  # as in the status
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
