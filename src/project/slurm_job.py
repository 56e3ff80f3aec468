"""A run inside a SLURM job: starting the job anew when its time is over, and finding the run again then."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def find_run(beside: Path) -> Path | None:
    """Folder of the run that the same command of this job began before the job was started again.

    Args:
        beside: the folder that it would have now; its own lies beside that, or is it.
    """
    job = job_id()
    if job is None or not restarted():
        return None
    found: list[tuple[str, Path]] = []
    for file in beside.parent.glob("*/status.json"):
        try:
            status: dict[str, Any] = json.loads(file.read_text())
        except (OSError, json.JSONDecodeError):
            continue
        if status.get("slurm_job") == job and status.get("command") == sys.argv:
            found.append((str(status.get("started")), file.parent))
    return max(found)[1] if found else None
