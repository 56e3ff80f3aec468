"""Progress output of a sweep: one line per finished job and, on a terminal, a live table of running jobs."""

import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from omegaconf import DictConfig, OmegaConf

from project.runs.ranking import Score, rank
from project.runs.run_folder import RunFolder
from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import FINISHED, Job
from project.runtime.atomic_files import GrowingFile, Outage
from project.runtime.console import STATE_STYLES
from project.runtime.text import duration, plural
from project.sweeps.job_table import point_score

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

LAST_LINES = 8
"""Number of lines of a failed job's log that are printed."""
LOG_PREFIX = re.compile(r"\[[\d-]+ [\d:,.]+\]\[\w+\]\[[\w.]+\] ?")
"""Time, level and module of a line of a log."""
REFRESH_S = 0.25
MAX_BARS = 16
BAR_WIDTH = 20
STATE_WIDTH = 11


class LiveView:
    """Print lines to a stream and write them with a timestamp to the sweep's log.

    Args:
        log_file: the sweep's log.
        num_jobs: number of jobs of the sweep.
        monitor: name of the metric that ranks the jobs.
        mode: `max` or `min`.
        progress: function that returns a running job's epoch, number of epochs and latest metrics.
        repetitions: planned number of jobs per point.
        stream: stream for the lines [standard output].
    """

    def __init__(
        self,
        log_file: Path,
        num_jobs: int,
        monitor: str,
        mode: str,
        progress: Callable[[Job], dict[str, float]],
        repetitions: int = 1,
        stream: TextIO | None = None,
    ) -> None:
        outage = Outage(
            log_file, "lines are buffered until it can be written, and lost if the sweep ends first"
        )
        self._log = GrowingFile(outage)
        self.num_jobs = num_jobs
        self.monitor = monitor
        self.larger_is_better = mode == "max"
        self.repetitions = repetitions
        self.progress = progress
        self.stream = stream or sys.stdout
        is_terminal = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self._live = _make_live_table(self.stream) if is_terminal else None
        self._ended: dict[int, str] = {}  # states by number of the job
        self._best: str | None = None
        self._points: dict[Hashable, dict[int, Job]] = {}
        self._scores: dict[Hashable, Score] = {}
        self._durations_s: list[float] = []
        self._last_refresh = 0.0
        self._start = time.monotonic()

    @classmethod
    def from_config(
        cls, folder: SweepFolder, config: DictConfig, num_jobs: int, repetitions: int = 1
    ) -> "LiveView":
        """Create the view from a sweep's configuration, where `monitor` and `mode` are optional."""
        monitor = str(OmegaConf.select(config, "monitor", default="value"))
        mode = str(OmegaConf.select(config, "mode", default="max"))

        def progress(job: Job) -> dict[str, float]:
            return folder.run(job.name).read_status().get("progress") or {}

        return cls(folder.log_file, num_jobs, monitor, mode, progress, repetitions)

    def count_earlier(self, jobs: Iterable[Job]) -> None:
        """Count the jobs that finished before the sweep was resumed."""
        known = list(jobs)
        for job in known:  # all of them first: the score of a point counts its waiting repetitions
            self._points.setdefault(job.point_key, {})[job.number] = job
        for job in known:
            if job.state in FINISHED:
                self._count(job)

    def print(self, text: str, style: str = "") -> None:
        """Print lines above the live table, the first word in a rich style."""
        stamp = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        self._log.append("".join(f"[{stamp}] {line}\n" for line in text.splitlines()).encode())
        self._log.flush()
        with suppress(OSError):  # a full disk or a closed pipe must not stop the jobs
            if self._live is None:
                print(text, file=self.stream, flush=True)
            else:
                from rich.text import Text

                line = Text(text)
                line.stylize(style, 0, STATE_WIDTH)
                self._live.console.print(line, soft_wrap=True)

    def print_start(self, job: Job) -> None:
        """Print that a job started, unless the live table shows it."""
        self._ended.pop(job.number, None)  # paused before
        self.num_jobs = max(self.num_jobs, job.number + 1)  # a search may add jobs
        if self._live is None:
            self.print(f"{'started':{STATE_WIDTH}} {self._format_number(job)}  {job.label}")

    def print_end(self, job: Job, run: RunFolder) -> None:
        """Print the result of a job; for a failed job also the error and the end of its log."""
        self._count(job)
        parts = [f"{job.state:{STATE_WIDTH}} {self._format_number(job)}  {job.label}"]
        if job.value is not None:
            parts.append(f"{self.monitor} {job.value:.4f}")
        if job.state == "eliminated":
            parts.append(job.error or "")
        if job.duration_s is not None:
            self._durations_s.append(job.duration_s)
            parts.append(duration(job.duration_s))
        parts.append(f"({len(self._ended)} of {self.num_jobs})")
        self.print("  ".join(parts), STATE_STYLES.get(job.state, ""))
        if job.state == "failed":
            self.print("\n".join(f"{'':{STATE_WIDTH}} {line}" for line in _explain_failure(job, run)))

    def print_stop(self, running: int, *, is_signal: bool) -> None:
        """Print that the sweep waits for its running jobs to stop."""
        if running:
            reason = "stop requested" if is_signal else "a job failed (fail_fast)"
            remedy = "; Ctrl-C again kills them" if is_signal else ""
            self.print(f"{reason}: waiting for {plural(running, 'running job')} to stop{remedy}")

    def refresh(self, running: Iterable[Job]) -> None:
        """Redraw the live table, at most every `REFRESH_S` seconds."""
        now = time.monotonic()
        if self._live is None or now - self._last_refresh < REFRESH_S:
            return
        self._last_refresh = now
        with suppress(OSError):
            if not self._live.is_started:
                self._live.start()
                self._live.console.show_cursor(True)  # a killed process could not show it again
            self._live.update(self._render(list(running)), refresh=True)

    def close(self) -> None:
        """Remove the live table from the terminal."""
        self._log.flush(now=True)
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()

    @property
    def best(self) -> str:
        """Best point so far and its value; empty if no job has a value."""
        if self._best is None and self._scores:
            key = rank(self._scores, self._scores.__getitem__, larger_is_better=self.larger_is_better)[0]
            label = next(iter(self._points[key].values())).point_label
            self._best = f"{label}: {self._scores[key]}" if math.isfinite(self._scores[key].mean) else ""
        return self._best or ""

    def _count(self, job: Job) -> None:
        self._ended[job.number] = job.state
        point = self._points.setdefault(job.point_key, {})
        point[job.number] = job
        self._scores[job.point_key] = point_score(point.values(), self.repetitions)
        self._best = None

    def _format_number(self, job: Job) -> str:
        return f"{job.number:>{len(str(self.num_jobs))}}"

    def _render(self, jobs: list[Job]) -> "RenderableType":
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        bars = Table.grid(padding=(0, 1))
        bars.add_column()
        bars.add_column(width=BAR_WIDTH)
        bars.add_column(no_wrap=True, overflow="ellipsis")
        for job in islice(jobs, MAX_BARS):
            progress = self.progress(job)
            epoch, epochs = progress.get("epoch", 0), progress.get("epochs", 0)
            text = f"epoch {epoch:.0f}/{epochs:.0f} " if epochs > 0 else ""
            if self.monitor in progress:
                text += f"{self.monitor} {progress[self.monitor]:.4f}  "
            bar = ProgressBar(
                total=max(1, epochs),
                completed=epoch if epochs > 0 else 0,
                width=BAR_WIDTH,
                style="bright_black",
                complete_style="cyan",
                finished_style="green",
            )
            bars.add_row(f"  {self._format_number(job)}", bar, Text(text + job.label))
        lines: list[RenderableType] = [
            Text(self._summary(len(jobs)), no_wrap=True, overflow="ellipsis"),
            bars,
        ]
        if len(jobs) > MAX_BARS:
            lines.append(f"  … and {len(jobs) - MAX_BARS} more")
        return Group(*lines)

    def _summary(self, running: int) -> str:
        finished = len(self._ended)
        parts = [f"{count} {state}" for state, count in Counter(self._ended.values()).items()]
        parts += [f"{running} running", f"{max(0, self.num_jobs - finished - running)} waiting"]
        text = f"{', '.join(parts)} · {duration(time.monotonic() - self._start)}"
        if self._durations_s:
            mean = sum(self._durations_s) / len(self._durations_s)
            text += f", about {duration(mean * (self.num_jobs - finished) / max(1, running))} left"
        return text + (f" · best {self.best}" if self.best else "")


def _make_live_table(stream: TextIO) -> "Live":
    from rich.console import Console
    from rich.live import Live

    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    # No refresh thread: forking jobs from a process with threads is unsafe.
    return Live(
        console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
    )


def _explain_failure(job: Job, run: RunFolder) -> list[str]:
    """Return the error of a job, the end of its log unless that repeats the error, and its path."""
    reasons = (job.error or "").splitlines()
    log = next(iter(sorted(run.path.glob("*.log"))), None)
    if log is None:
        return [f"why: {line}" for line in reasons]
    with log.open(errors="replace") as stream:
        tail = [LOG_PREFIX.sub("", line.rstrip()) for line in stream if line.strip()][-LAST_LINES:]
    is_known = any(line.startswith("error: ") and line[7:] in (job.error or "") for line in tail)
    shown = [] if is_known else [f"  | {line}" for line in tail if line not in reasons]
    return [*(f"why: {line}" for line in reasons), *shown, f"log: {RunFolder(log).shown}"]
