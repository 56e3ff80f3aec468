"""Fake SLURM commands with the options that submitit uses; all nodes are this machine.

`install` writes the commands; the folder FAKE_SLURM holds jobs and their states.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol")


def install(folder: Path) -> dict[str, str]:
    """Write the commands to a folder; return the environment variables that make processes use them."""
    (folder / "bin").mkdir(parents=True)
    (folder / "jobs").mkdir()
    for name in COMMANDS:
        command = folder / "bin" / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} {name} "$@"\n')
        command.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "FAKE_SLURM": str(folder / "jobs")}


def jobs() -> Path:
    return Path(os.environ["FAKE_SLURM"])


def sbatch(script: str) -> int:
    number = str(4321 + len(list(jobs().iterdir())))
    (jobs() / number).write_text("RUNNING")
    with open(os.devnull, "r+b") as nothing:
        subprocess.Popen(
            [sys.executable, __file__, "run", number, script],
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            start_new_session=True,
        )
    print(f"Submitted batch job {number}")
    return 0


def run(number: str, script: str) -> int:
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(.+)$", Path(script).read_text(), re.MULTILINE))
    nodes, each = int(options["nodes"]), int(options["ntasks-per-node"])
    environment = os.environ | {
        "SLURM_JOB_ID": number,
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_JOB_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": str(nodes * each),
        "SLURM_NTASKS_PER_NODE": str(each),
        "FAKE_SLURM_GROUP": str(os.getpid()),
    }
    (jobs() / number).with_suffix(".group").write_text(str(os.getpid()))
    requeue = (jobs() / number).with_suffix(".requeue")
    while True:
        code = subprocess.run(["bash", script], env=environment, check=False).returncode
        if not requeue.exists():
            break
        requeue.unlink()
    (jobs() / number).write_text("FAILED" if code else "COMPLETED")
    return code


def srun(*arguments: str) -> int:
    output = arguments[arguments.index("--output") + 1].replace("%j", os.environ["SLURM_JOB_ID"])
    arguments = arguments[next(at for at, word in enumerate(arguments) if word == sys.executable) :]
    each = int(os.environ["SLURM_NTASKS_PER_NODE"])
    tasks = [
        subprocess.Popen(
            arguments,
            stdout=open(output.replace("%t", str(task)), "ab"),  # noqa: SIM115
            stderr=subprocess.STDOUT,
            env=os.environ
            | {
                "SLURM_STEP_ID": "0",
                "SLURM_PROCID": str(task),
                "SLURM_LOCALID": str(task % each),
                "SLURM_NODEID": str(task // each),
            },
        )
        for task in range(int(os.environ["SLURM_NTASKS"]))
    ]
    while any(task.poll() is None for task in tasks):
        if any(task.poll() for task in tasks):  # --kill-on-bad-exit
            for task in tasks:
                task.kill()
        time.sleep(0.1)
    return max(abs(task.returncode) for task in tasks)


def squeue(*arguments: str) -> int:
    assert "--format=%i|%T|%r" in arguments
    for file in jobs().glob("*[0-9]"):
        print(f"{file.name}|{file.read_text()}|None")
    return 0


def scancel(*arguments: str) -> int:
    for number in (word for word in arguments if word.isdigit()):
        (jobs() / number).write_text("CANCELLED")
        os.killpg(int((jobs() / number).with_suffix(".group").read_text()), signal.SIGKILL)
    return 0


def scontrol(command: str, number: str) -> int:
    assert command == "requeue"
    (jobs() / number).with_suffix(".requeue").touch()
    return 0


if __name__ == "__main__":
    sys.exit({"run": run, **{name: globals()[name] for name in COMMANDS}}[sys.argv[1]](*sys.argv[2:]))
