"""The default sweeper: every combination of the values on the command line."""

from collections.abc import Sequence
from typing import Annotated

from project.runs.sweep_jobs import Job
from project.runtime.bounds import Range
from project.runtime.text import plural
from project.sweeps.scheduler import JobList
from project.sweeps.settings import checked_options
from project.sweeps.sweepers.base import RecordedSweeper
from project.sweeps.sweepers.points import (
    PointLimit,
    drop_duplicates,
    grid,
    make_jobs,
    read_points,
    repetitions,
)

MANY_JOBS = 500
"""Number of jobs whose check takes seconds."""


class GridSweeper(RecordedSweeper):
    """Sweep all combinations of the values, optionally with several seeds or folds.

    Args:
        seeds: jobs of each point, with the seeds s, s + 1, …
        folds: jobs of each point for cross-validation, each with another part for validation (None: one job).
        file: text file with the overrides of one point a line, combined with each point of the command line.
        max_points: most points of the sweep, each seed and fold counted.
        changed_code: resume although the code changed since the sweep began.
    """

    @checked_options("hydra.sweeper")
    def __init__(
        self,
        seeds: Annotated[int, Range(1)] = 1,
        folds: Annotated[int, Range(2)] | None = None,
        file: str | None = None,
        max_points: Annotated[int, Range(1)] = 10_000,
        changed_code: bool = False,
    ) -> None:
        super().__init__(seeds, folds, changed_code)
        self.file = file
        self.max_points = max_points

    def run_jobs(self, overrides: Sequence[str], jobs: list[Job]) -> int:
        is_new = not jobs
        jobs = jobs or self._make_jobs(overrides)
        targets = self.check_jobs(jobs)
        if is_new:
            self.folder.ledger.write(*jobs)
        return self.run_source(JobList(jobs), jobs, len(jobs), targets)

    def _make_jobs(self, overrides: Sequence[str]) -> list[Job]:
        limit = PointLimit(self.max_points, self.seeds * (self.folds or 1))
        if self.file is None:
            points = grid(overrides, self.loader, limit)
        else:
            points = read_points(self.file, overrides, self.loader, limit)
        given, points = len(points), drop_duplicates(points)
        if given > len(points):
            print(f"left out {plural(given - len(points), 'point')} equal to an earlier one")
        if (number := len(points) * limit.repeats) > MANY_JOBS:
            print(f"{number:,} jobs: all of them are checked before the first one starts", flush=True)
        extras = [list(repetitions(point, self.config.seed, self.seeds, self.folds)) for point in points]
        digits = len(str(sum(map(len, extras)) - 1))
        jobs: list[Job] = []
        for number, (point, own) in enumerate(zip(points, extras, strict=True)):
            jobs += make_jobs(len(jobs), number, point, own, digits)
        return jobs
