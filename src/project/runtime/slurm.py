"""A run inside a SLURM job: starting the job anew when its time is over, and finding the run again then."""

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
    """The SLURM job that this process belongs to, as `scontrol` takes it; None outside."""
    found = os.environ
    if "SLURM_ARRAY_JOB_ID" in found:  # one task's own number may be that of the whole array
        return f"{found['SLURM_ARRAY_JOB_ID']}_{found.get('SLURM_ARRAY_TASK_ID', '0')}"
    return found.get("SLURM_JOB_ID")


def restarted() -> bool:
    """Whether SLURM has started this job before."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def requeue() -> None:
    """Have SLURM start this job again; say so. Does nothing outside SLURM.

    SLURM ends what is left of the job at once: this comes last.
    """
    if (job := job_id()) is None:
        return
    try:
        asked = subprocess.run(
            ["scontrol", "requeue", job],
            capture_output=True,
            text=True,
            timeout=REQUEUE_LIMIT_S,
            check=False,
        )
        refusal = " ".join((asked.stderr or asked.stdout).split()) if asked.returncode else ""
        failed = asked.returncode != 0
    except (OSError, subprocess.TimeoutExpired) as error:
        refusal, failed = str(error), True
    if failed:
        print(f"SLURM does not requeue job {job} ({refusal}); submit it with --requeue", file=sys.stderr)
    else:
        print(f"SLURM will start job {job} again", file=sys.stderr)


def find_run(beside: Path, *, named_alike: bool = False) -> Path | None:
    """Folder of the run that the same command of this job began before the job was started again.

    It is known by what its status says, never by its name alone: a folder of that name may be anything.

    Args:
        beside: the folder that it would have now; its own lies beside that, or is it.
        named_alike: its own has that name too, with -2, -3, … behind it where that was taken.
    """
    job = job_id()
    if job is None or not restarted():
        return None
    command = redact(sys.argv)  # as the status has it
    found: list[tuple[str, Path]] = []
    for file in beside.parent.glob("*/status.json"):
        if named_alike and re.sub(r"-\d+$", "", file.parent.name.removeprefix(beside.name)):
            continue
        try:
            status: Any = json.loads(file.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(status, dict) and (status.get("slurm_job"), status.get("command")) == (job, command):
            found.append((str(status.get("started")), file.parent))
    return max(found)[1] if found else None
