"""Kill a sweep's process tree at random moments, resume it each time, and count its finished jobs.

    python benchmarks/sweep_kills.py --kills 20
    python benchmarks/sweep_kills.py --kills 20 --ranks 2
    python benchmarks/sweep_kills.py --kills 20 --sweeper pbt
    python benchmarks/sweep_kills.py --kills 10 --join

Each part of a job must be finished exactly once, and no process may remain. A job of a grid has one part; one
of ASHA or PBT has a part for each pause, and one if it is done. A part counts as finished again if its record
follows another state in the sweep's ledger, or if the job's log contains more tables of results than parts.
A kill follows a random number of epochs, not of seconds, so that the kills spread over the sweep on any
machine. With `--join`, a second process runs some of the jobs; each kill hits one of both processes, or both.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "train.py"
EPOCHS = 10
SWEEP = [
    *("-m", "model=mlp", "data=synthetic", "data.train_size=8000", "trainer.accelerator=cpu"),
    *("~callbacks.early_stopping", f"trainer.max_epochs={EPOCHS}"),
]
LR = "optim.lr=tag(log,interval(1e-4,1e-1))"
END_S = 15.0
"""Time within which processes must end after a kill [s]."""
STALL_S = 300.0
"""Time without a new epoch or job after which the trial fails [s]."""
JOBS = "outputs/sweep/*/[0-9]*"
"""Folders of the jobs."""
Record = dict[str, Any]
"""Entry of the ledger."""


class Sweeper(NamedTuple):
    """A way to choose jobs.

    Args:
        options: overrides.
        epochs: epochs of all jobs together.
        missing: function that names what is missing in the last records of all jobs; empty if nothing.
    """

    options: list[str]
    epochs: int
    missing: Callable[[list[Record]], str]


def missing_in_grid(jobs: list[Record]) -> str:
    """Return the number of jobs that are not done, of 12."""
    done = sum(job["state"] == "done" for job in jobs)
    return "" if done == len(jobs) == 12 else f"{12 - done} jobs"


def missing_in_asha(jobs: list[Record]) -> str:
    """Return the first rung that fewer trials than a third of the rung before have reached, of 27 trials."""
    reached = [sum(num_parts(job) > rung for job in jobs) for rung in range(3)]
    wanted = [27, reached[0] // 3, reached[1] // 3]
    return next((f"rung {rung}" for rung in range(3) if reached[rung] < wanted[rung]), "")


def missing_in_pbt(jobs: list[Record]) -> str:
    """Return the number of generations that members have not trained, of 6 members and 5 generations."""
    done = sum(job["state"] == "done" for job in jobs)
    parts = sum(map(num_parts, jobs))
    return "" if (done, parts) == (6, 30) else f"{30 - parts} parts of jobs, {6 - done} jobs"


SWEEPERS = {
    "grid": Sweeper(["optim.lr=0.1,0.05,0.02,0.01,0.005,0.002", "optim=sgd,adam"], 120, missing_in_grid),
    "asha": Sweeper(
        ["hydra/sweeper=asha", LR, "hydra.sweeper.n_trials=27", "hydra.sweeper.min_epochs=1"],
        27 + 9 * 2 + 3 * 7,
        missing_in_asha,
    ),
    "pbt": Sweeper(
        [
            *("hydra/sweeper=pbt", LR, "hydra.sweeper.population_size=6"),
            "hydra.sweeper.interval_epochs=2",
        ],
        60,
        missing_in_pbt,
    ),
}


def main() -> None:
    """Run the trial and print its result; exit code 1 if a part was lost or finished twice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeper", choices=SWEEPERS, default="grid")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1, help="ranks per job; above 1: DDP")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--parent-only", action="store_true", help="kill only the sweep's own process")
    parser.add_argument(
        "--join", action="store_true", help="with a second process that runs jobs of the grid"
    )
    arguments = parser.parse_args()
    if arguments.join and arguments.sweeper != "grid":
        parser.error("--join: only a grid can be joined")
    moments = random.Random(arguments.seed)  # noqa: S311 (no secret)
    with tempfile.TemporaryDirectory() as name:
        trial = Trial(
            Path(name),
            SWEEPERS[arguments.sweeper],
            arguments.ranks,
            moments,
            parent_only=arguments.parent_only,
            join=arguments.join,
        )
        result = trial.run(arguments.kills)
    print(json.dumps(result, indent=2))
    wrong = ("missing", "parts finished more than once", "parts trained again", "left processes", "exit code")
    sys.exit(1 if any(result[key] for key in wrong) else 0)


class Trial:
    """Sweep that is killed and resumed.

    Args:
        folder: working directory.
        sweeper: way to choose jobs.
        ranks: ranks per job.
        moments: random generator for the moments of the kills.
        parent_only: kill only the sweep's own process, whose children must end by themselves.
        join: let a second process run some of the jobs.
    """

    def __init__(
        self,
        folder: Path,
        sweeper: Sweeper,
        ranks: int,
        moments: random.Random,
        *,
        parent_only: bool = False,
        join: bool = False,
    ) -> None:
        self.folder = folder
        self.sweeper = sweeper
        self.moments = moments
        self.parent_only = parent_only
        self.join = join
        self.command = [sys.executable, str(SCRIPT), *SWEEP, *sweeper.options]
        if ranks > 1:
            self.command += ["trainer=ddp", f"trainer.devices={ranks}"]
        self.killed: list[str] = []
        self.left = 0
        self.owner: subprocess.Popen[bytes] | None = None
        self.joined: subprocess.Popen[bytes] | None = None

    def run(self, kills: int) -> dict[str, Any]:
        """Start the sweep, kill and resume it `kills` times, then let it finish.

        Args:
            kills: number of kills, fewer if the sweep ends before.

        Returns:
            Counts: parts finished at each kill, parts finished once and more often, remaining processes.
        """
        parts_at_kill, epochs_at_kill = [], []
        for _ in range(kills):
            was_killed = self.owner is None
            owner = self._start_owner()
            if was_killed:
                wait_for(owner, self.folder, new_jobs=1)
            if self.join and (self.joined is None or self.joined.poll() is not None):
                (sweep,) = self.folder.glob("outputs/sweep/*")
                command = [sys.executable, str(SCRIPT), f"resume={sweep}", "join=true"]
                self.joined = start(command, self.folder)
            new_epochs = self.moments.randint(0, 2 * self.sweeper.epochs // kills)
            wait_for(owner, self.folder, new_epochs=new_epochs)
            time.sleep(self.moments.uniform(0.0, 1.0))  # also while a job starts or writes a checkpoint
            if owner.poll() is not None:
                break
            self._kill_some(owner)
            parts_at_kill.append(sum(map(num_parts, last_records(self.folder).values())))
            epochs_at_kill.append(count_epochs(self.folder))
        owner = self._start_owner()
        wait_for(owner, self.folder, new_epochs=math.inf)
        if owner.returncode:
            print(last_output(self.folder), file=sys.stderr)
        if self.joined is not None:
            tree = [self.joined.pid, *descendants(self.joined.pid)]
            self.left += len(still_there(tree, self.joined))
        final = last_records(self.folder)
        times = Counter(finished_parts(self.folder))
        return {
            "jobs": len(final),
            "states": dict(Counter(str(job["state"]) for job in final.values())),
            "parts": sum(map(num_parts, final.values())),
            "missing": self.sweeper.missing(list(final.values())),
            "parts finished once": sum(count == 1 for count in times.values()),
            "parts finished more than once": sum(count > 1 for count in times.values()),
            "parts trained again": sum(map(tables_too_many, self.folder.glob(JOBS), [final] * len(final))),
            "kills": len(parts_at_kill),
            "killed": dict(Counter(self.killed)),
            "parts finished at each kill": parts_at_kill,
            "epochs trained at each kill": epochs_at_kill,
            "epochs trained": count_epochs(self.folder),
            "left processes": self.left,
            "exit code": owner.returncode,
        }

    def _start_owner(self) -> subprocess.Popen[bytes]:
        """Return the process that owns the sweep; start it if it was killed."""
        if self.owner is None:
            self.owner = start(self.command, self.folder)
            self.command = [sys.executable, str(SCRIPT), "resume=last"]
        return self.owner

    def _kill_some(self, owner: subprocess.Popen[bytes]) -> None:
        """Kill the owner or the joined process, or both."""
        victims = {"owner": owner}
        if self.joined is not None and self.joined.poll() is None:
            both = victims | {"joined": self.joined}
            names = self.moments.choice([["owner"], ["joined"], ["owner", "joined"]])
            victims = {name: both[name] for name in names}
        self.killed.append(" and ".join(victims))
        tree = [pid for process in victims.values() for pid in descendants(process.pid)]
        targets = [process.pid for process in victims.values()]
        if not self.parent_only:
            self.moments.shuffle(tree)
            targets += tree
        for pid in targets:
            kill(pid)
        for process in victims.values():
            process.wait()
        self.left += len(still_there(tree))
        if "owner" in victims:
            self.owner = None


def start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a sweep that writes its output to `folder`."""
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)


def wait_for(
    process: subprocess.Popen[bytes], folder: Path, *, new_jobs: int = 0, new_epochs: float = 0
) -> None:
    """Wait until the sweep has started a number of jobs and trained a number of epochs, or has ended.

    Raises:
        TimeoutError: no epoch and no job for `STALL_S`.
    """
    before = len(lines(folder)), count_epochs(folder)
    seen, deadline = before, time.monotonic() + STALL_S
    while process.poll() is None:
        started = sum(line["state"] == "running" for line in lines(folder)[before[0] :])
        if started >= new_jobs and count_epochs(folder) - before[1] >= new_epochs:
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


def lines(folder: Path) -> list[Record]:
    """Return the entries of the sweep's ledger."""
    found = []
    for record in folder.glob("outputs/sweep/*/jobs.jsonl"):
        complete = [line for line in record.read_text().splitlines(keepends=True) if line.endswith("\n")]
        found += [json.loads(line) for line in complete]
    return found


def last_records(folder: Path) -> dict[int, Record]:
    """Return the last entry of each job."""
    return {line["number"]: line for line in lines(folder)}


def num_parts(job: Record) -> int:
    """Return the number of finished parts of a job."""
    return len(job["pause_values"]) + (job["state"] == "done")


def finished_parts(folder: Path) -> list[tuple[int, int]]:
    """Return the job and the part for each time that a part was finished."""
    before: dict[int, tuple[str, int]] = {}
    found = []
    for line in lines(folder):
        now = line["state"], num_parts(line)
        if line["state"] in ("done", "paused") and before.get(line["number"]) != now:
            found.append((line["number"], now[1]))
        before[line["number"]] = now
    return found


def tables_too_many(folder: Path, final: dict[int, Record]) -> int:
    """Return how many tables of results a job's log contains in addition to one for each part."""
    job = next(job for job in final.values() if job["name"] == folder.name)
    log = folder / "train.log"
    return max(0, (log.read_text() if log.exists() else "").count(" weights)") - num_parts(job))


def logs(folder: Path) -> list[str]:
    """Return the texts of the jobs' logs."""
    return [log.read_text() for log in folder.glob(f"{JOBS}/train.log")]


def descendants(pid: int) -> list[int]:
    """Return the process ids of all descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [found for child in map(int, children) for found in [child, *descendants(child)]]


def still_there(pids: Sequence[int], child: subprocess.Popen[bytes] | None = None) -> list[int]:
    """Return the processes that do not end within `END_S`; `child` is one of them that this process reaps."""
    deadline = time.monotonic() + END_S
    while (left := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < deadline:
        if child is not None:
            child.poll()
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
