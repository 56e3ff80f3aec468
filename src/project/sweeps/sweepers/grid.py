"""The default sweeper: every combination of the values on the command line."""

from collections.abc import Sequence
from typing import Annotated

from project.runs.sweep_jobs import Job
from project.sweeps.settings import Count, Least, checked_options
from project.sweeps.sweepers.base import RecordedSweeper
from project.sweeps.sweepers.points import Limit, distinct, grid, jobs_of, listed, repeated

MANY = 500
"""Jobs whose check takes seconds."""


class Grid(RecordedSweeper):
    """All combinations of the swept values, each with several seeds or folds on wish.

    Args:
        seeds: jobs of each point, with the seeds s, s + 1, …
        folds: cross-validation: jobs of each point, of which each validates on another part.
        file: a text file with the overrides of one point a line, taken with each point of the command line.
        max_points: most points of the sweep, each seed and fold counted; more are refused before one is made.
        changed_code: go on although the code is not what the sweep began with.
    """

    @checked_options("hydra.sweeper")
    def __init__(
        self,
        seeds: Count = 1,
        folds: Annotated[int, Least(2)] | None = None,
        file: str | None = None,
        max_points: Count = 10_000,
        changed_code: bool = False,
    ) -> None:
        super().__init__(changed_code)
        self.seeds = seeds
        self.folds = folds
        self.file = file
        self.max_points = max_points

    def run_jobs(self, overrides: Sequence[str], jobs: list[Job]) -> int:
        """See `RecordedSweeper`."""
        if not jobs:
            jobs = self._jobs(overrides)
            targets = self.checked(jobs)
            self.folder.ledger.write(*jobs)
        else:
            targets = self.checked(jobs)
        return self.run_list(jobs, targets)

    def _jobs(self, overrides: Sequence[str]) -> list[Job]:
        limit = Limit(self.max_points, self.seeds * (self.folds or 1))
        if self.file is None:
            points = grid(overrides, self.loader, limit)
        else:
            points = listed(self.file, overrides, self.loader, limit)
        given, points = len(points), distinct(points)
        if given > len(points):
            print(f"{given - len(points)} points equal earlier ones and are left out")
        if (number := len(points) * limit.repeats) > MANY:
            print(f"{number:,} jobs: all of them are checked before the first one starts", flush=True)
        extras = [list(repeated(point, self.config.seed, self.seeds, self.folds)) for point in points]
        digits = len(str(sum(map(len, extras)) - 1))
        jobs: list[Job] = []
        for number, (point, own) in enumerate(zip(points, extras, strict=True)):
            jobs += jobs_of(len(jobs), number, point, own, digits)
        return jobs
