"""Kill a sweep's process tree at random moments, resume it each time, and count its finished jobs.

    python benchmarks/sweep_kills.py --kills 20
    python benchmarks/sweep_kills.py --kills 20 --ranks 2

Each job must be done exactly once, and no process may remain. A job counts as done again if its record
`done` follows another state in the sweep's ledger, or if its log contains a second table of results. A kill
follows a random number of epochs, not of seconds, so that the kills spread over the sweep on any machine.
"""

import argparse
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "train.py"
JOBS, EPOCHS = 12, 10
SWEEP = [
    *("-m", "model=mlp", "data=synthetic", "data.train_size=8000", "trainer.accelerator=cpu"),
    *(f"trainer.max_epochs={EPOCHS}", "optim.lr=0.1,0.05,0.02,0.01,0.005,0.002", "optim=sgd,adam"),
]
END_S = 15.0
"""Time within which processes must end after a kill [s]."""
STALL_S = 300.0
"""Time without a new epoch or job after which the trial fails [s]."""


def main() -> None:
    """Run the trial and print its result; exit code 1 if a job was lost or done twice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1, help="ranks per job; above 1: DDP")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--parent-only", action="store_true", help="kill only the sweep's own process")
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)  # noqa: S311 (no secret)
    with tempfile.TemporaryDirectory() as name:
        result = kill_and_resume(
            Path(name), arguments.kills, arguments.ranks, moments, parent_only=arguments.parent_only
        )
    print(json.dumps(result, indent=2))
    sys.exit(0 if result["done once"] == JOBS and not result["left processes"] else 1)


def kill_and_resume(
    folder: Path, kills: int, ranks: int, moments: random.Random, *, parent_only: bool = False
) -> dict[str, object]:
    """Start a sweep, kill and resume it `kills` times, then let it finish.

    Args:
        folder: working directory.
        kills: number of kills, fewer if the sweep ends before.
        ranks: ranks per job.
        moments: random generator for the moments of the kills.
        parent_only: kill only the sweep's own process, whose children must end by themselves.

    Returns:
        Counts: jobs done once, jobs done more often, jobs done at each kill, remaining processes.
    """
    command = [sys.executable, str(SCRIPT), *SWEEP]
    if ranks > 1:
        command += ["trainer=ddp", f"trainer.devices={ranks}"]
    done_at_kill, epochs_at_kill, left = [], [], 0
    for _ in range(kills):
        process = start(command, folder)
        wait_for(process, folder, new_epochs=moments.randint(0, 2 * JOBS * EPOCHS // kills))
        time.sleep(moments.uniform(0.0, 1.0))  # also while a job starts or writes a checkpoint
        tree = descendants(process.pid)
        if parent_only:
            process.kill()
        else:
            moments.shuffle(tree)
            for pid in [process.pid, *tree]:
                kill(pid)
        process.wait()
        left += len(still_there(tree))
        done_at_kill.append(sum(state == "done" for state in states(folder).values()))
        epochs_at_kill.append(count_epochs(folder))
        command = [sys.executable, str(SCRIPT), "resume=last"]
        if done_at_kill[-1] == JOBS:
            break
    process = start(command, folder)
    wait_for(process, folder)
    if process.returncode:
        print(last_output(folder), file=sys.stderr)
    final = states(folder)
    times = Counter(times_done(folder))
    return {
        "jobs": len(final),
        "done once": sum(times[number] == 1 and final[number] == "done" for number in final),
        "done more than once": sum(count > 1 for count in times.values()),
        "evaluated more than once": sum(text.count(" weights)") > 1 for text in logs(folder)),
        "not done": sum(state != "done" for state in final.values()),
        "kills": len(done_at_kill),
        "jobs done at each kill": done_at_kill,
        "epochs trained at each kill": epochs_at_kill,
        "epochs trained": count_epochs(folder),
        "left processes": left,
        "exit code": process.returncode,
    }


def start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a sweep that writes its output to `folder`."""
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)


def wait_for(process: subprocess.Popen[bytes], folder: Path, new_epochs: float = math.inf) -> None:
    """Wait until the sweep has started a job and trained a number of epochs, or has ended.

    Raises:
        TimeoutError: no epoch and no job for `STALL_S`.
    """
    first = len(lines(folder)), count_epochs(folder)
    seen, deadline = first, time.monotonic() + STALL_S
    while process.poll() is None:
        has_started = any(line["state"] == "running" for line in lines(folder)[first[0] :])
        if has_started and seen[1] - first[1] >= new_epochs:
            return
        if (now := (len(lines(folder)), count_epochs(folder))) != seen:
            seen, deadline = now, time.monotonic() + STALL_S
        if time.monotonic() > deadline:
            for pid in [process.pid, *descendants(process.pid)]:
                kill(pid)
            raise TimeoutError(f"no progress for {STALL_S:.0f} s; the sweep printed:\n{last_output(folder)}")
        time.sleep(0.05)


def last_output(folder: Path) -> str:
    """Return the end of what the sweep printed."""
    return (folder / "output.txt").read_text(errors="replace")[-2000:]


def count_epochs(folder: Path) -> int:
    """Count the epochs in the jobs' logs, repeated ones included."""
    return sum(len(re.findall(rf" \d+/{EPOCHS} ", text)) for text in logs(folder))


def lines(folder: Path) -> list[dict[str, object]]:
    """Return the entries of the sweep's ledger."""
    found = []
    for record in folder.glob("outputs/sweep/*/jobs.jsonl"):
        complete = [line for line in record.read_text().splitlines(keepends=True) if line.endswith("\n")]
        found += [json.loads(line) for line in complete]
    return found


def states(folder: Path) -> dict[int, str]:
    """Return the last state of each job."""
    return {line["number"]: line["state"] for line in lines(folder)}  # type: ignore[misc]


def times_done(folder: Path) -> list[int]:
    """Return a job's number for each time that the job was done."""
    before: dict[object, object] = {}
    found = []
    for line in lines(folder):
        if line["state"] == "done" and before.get(line["number"]) != "done":
            found.append(line["number"])
        before[line["number"]] = line["state"]
    return found  # type: ignore[return-value]


def logs(folder: Path) -> list[str]:
    """Return the texts of the jobs' logs."""
    return [log.read_text() for log in folder.glob("outputs/sweep/*/*/train.log")]


def descendants(pid: int) -> list[int]:
    """Return the process ids of all descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [found for child in map(int, children) for found in [child, *descendants(child)]]


def still_there(pids: list[int]) -> list[int]:
    """Return the processes that do not end within `END_S`."""
    deadline = time.monotonic() + END_S
    while (left := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def is_alive(pid: int) -> bool:
    """Return true if a process runs and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pid: int) -> None:
    """Send SIGKILL to a process, which may have ended already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    main()
