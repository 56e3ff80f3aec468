"""What a user sees of a running sweep: a line for each job that ends and, on a terminal, what goes on."""

import math
import shutil
import sys
import time
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

from project.runs.ranking import Score, rank
from project.runs.run_folder import RunFolder
from project.runs.sweep_jobs import FINISHED, Job
from project.runtime.files import GrowingFile, Outage
from project.runtime.text import duration
from project.sweeps.job_table import point_score

LAST_LINES = 8
"""Of a failed job's log, shown when it fails."""
REFRESH_S = 0.25
MOST_BARS = 16
BAR_WIDTH = 20


class View:
    """Prints to a stream, and writes the same lines with their time to the sweep's log.

    Args:
        log_file: the sweep's log.
        jobs: expected number.
        monitor: the metric that is the jobs' value.
        mode: `max` if larger values are better, `min` otherwise.
        progress: reads how far a job is: epoch, epochs and latest value.
        repetitions: jobs that each point is to have.
        stream: where to print; None: standard output.
    """

    def __init__(
        self,
        log_file: Path,
        jobs: int,
        monitor: str,
        mode: str,
        progress: Callable[[Job], dict[str, float]],
        repetitions: int = 1,
        stream: TextIO | None = None,
    ) -> None:
        outage = Outage(log_file, "lines are kept until it can be written, lost if the sweep ends before")
        self._log = GrowingFile(outage, shared=True)
        self.jobs = jobs
        self.monitor = monitor
        self.larger_is_better = mode == "max"
        self.repetitions = repetitions
        self.progress = progress
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()
        self.counts: dict[str, int] = {}
        self._best: str | None = None
        self._points: dict[Hashable, dict[int, Job]] = {}
        self._scores: dict[Hashable, Score] = {}
        self._seconds: list[float] = []
        self._lines_below = 0
        self._drawn = 0.0
        self._began = time.monotonic()

    def continued(self, jobs: Iterable[Job]) -> None:
        """Count what an earlier process of this sweep did."""
        known = list(jobs)
        for job in known:  # all of them first: points have repetitions that wait
            self._points.setdefault(job.point_key, {})[job.number] = job
        for job in known:
            if job.state in FINISHED:
                self._count(job)

    def say(self, text: str) -> None:
        """Print lines, above what goes on now."""
        stamp = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        self._log.append("".join(f"[{stamp}] {line}\n" for line in text.splitlines()).encode())
        self._log.flush()
        with suppress(OSError):  # a full disk, a pipe that nobody reads: jobs are worth more
            self._erase()
            print(text, file=self.stream, flush=True)

    def started(self, job: Job) -> None:
        """Tell of a start, where no live view does."""
        if not self.live:
            self.say(f"{'started':11} {self._place(job)}  {job.label}")

    def ended(self, job: Job, run: RunFolder) -> None:
        """Tell what became of a job; of a failed one, why."""
        self._count(job)
        if job.duration_s:
            self._seconds.append(job.duration_s)
        parts = [f"{job.state:11} {self._place(job)}  {job.label}"]
        if job.value is not None:
            parts.append(f"{self.monitor} {job.value:.4f}")
        if job.duration_s is not None:
            parts.append(duration(job.duration_s))
        parts.append(f"({sum(self.counts.values())} of {self.jobs})")
        self.say("  ".join(parts))
        if job.state == "failed":
            self.say("\n".join(f"{'':11} {line}" for line in self._why(job, run)))

    def stopping(self, signal_number: int, running: int) -> None:
        """Tell that the sweep is being stopped."""
        if not running:
            return
        reason = "told to stop" if signal_number else "a job failed (fail_fast)"
        once_more = "; Ctrl-C again ends them at once" if signal_number else ""
        self.say(f"{reason}: waiting for {running} running jobs to stop{once_more}")

    def tick(self, running: Iterable[Job]) -> None:
        """Show what goes on, a few times a second and on a terminal only."""
        now = time.monotonic()
        if not self.live or now - self._drawn < REFRESH_S:
            return
        self._drawn = now
        columns, rows = shutil.get_terminal_size()
        jobs = list(running)
        lines = [self._summary(len(jobs))]
        lines += [self._bar(job) for job in jobs[: min(MOST_BARS, max(1, rows - 3))]]
        if len(jobs) >= len(lines):
            lines.append(f"  … and {len(jobs) - len(lines) + 1} more")
        with suppress(OSError):
            self._erase()
            print("\n".join(line[: columns - 1] for line in lines), file=self.stream, flush=True)
            self._lines_below = len(lines)

    def close(self) -> None:
        """Leave the terminal with the lasting lines only."""
        self._log.flush(now=True)
        with suppress(OSError):
            self._erase()

    def _erase(self) -> None:
        if self._lines_below:
            self.stream.write(f"\x1b[{self._lines_below}F\x1b[J")
            self._lines_below = 0

    def _count(self, job: Job) -> None:
        self.counts[job.state] = self.counts.get(job.state, 0) + 1
        point = self._points.setdefault(job.point_key, {})
        point[job.number] = job
        self._scores[job.point_key] = point_score(point.values(), self.repetitions)
        self._best = None

    @property
    def best(self) -> str:
        """The best point so far and its value; empty if no job has one."""
        if self._best is None and self._scores:
            key = rank(self._scores, self._scores.__getitem__, larger_is_better=self.larger_is_better)[0]
            label = next(iter(self._points[key].values())).point_label
            self._best = f"{label}: {self._scores[key]}" if math.isfinite(self._scores[key].mean) else ""
        return self._best or ""

    def _place(self, job: Job) -> str:
        return f"{job.number:>{len(str(self.jobs))}}"

    def _summary(self, running: int) -> str:
        finished = sum(self.counts.values())
        parts = [f"{count} {state}" for state, count in self.counts.items()]
        parts.append(f"{running} running")
        parts.append(f"{max(0, self.jobs - finished - running)} waiting")
        text = f"{', '.join(parts)} · {duration(time.monotonic() - self._began)}"
        if self._seconds:
            left = self.jobs - finished
            mean = sum(self._seconds) / len(self._seconds)
            text += f", about {duration(mean * left / max(1, running))} left"
        if self.best:
            text += f" · best {self.best}"
        return text

    def _bar(self, job: Job) -> str:
        progress = self.progress(job)
        epoch, epochs = progress.get("epoch", 0), progress.get("epochs", 0)
        share = min(1.0, epoch / epochs) if epochs > 0 else 0.0
        bar = "━" * round(share * BAR_WIDTH) + "╌" * (BAR_WIDTH - round(share * BAR_WIDTH))
        text = f"  {self._place(job)} {bar}"
        if epochs > 0:
            text += f" epoch {epoch:.0f}/{epochs:.0f}"
        if self.monitor in progress:
            text += f" {self.monitor} {progress[self.monitor]:.4f}"
        return f"{text}  {job.label}"

    def _why(self, job: Job, run: RunFolder) -> list[str]:
        lines = [f"why: {line}" for line in (job.error or "").splitlines()]
        log = next(iter(sorted(run.path.glob("*.log"))), None)
        if log is None:
            return lines
        with log.open(errors="replace") as stream:
            tail = [line.rstrip() for line in stream if line.strip()][-LAST_LINES:]
        return [*lines, *(f"  | {line}" for line in tail), f"log: {RunFolder(log).shown}"]
