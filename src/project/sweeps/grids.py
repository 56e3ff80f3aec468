"""The default sweeper: every combination of the values on the command line."""

from collections.abc import Sequence

from project.sweeps.jobs import Job
from project.sweeps.points import grid, jobs_of, listed, refuse_repeats, repeated
from project.sweeps.sweeping import RecordedSweeper


class Grid(RecordedSweeper):
    """All combinations of the swept values, each with several seeds or folds on wish.

    Args:
        seeds: jobs of each point, with the seeds s, s + 1, …
        folds: cross-validation: jobs of each point, of which each validates on another part.
        file: a text file with the overrides of one point a line, taken with each point of the command line.
        changed_code: go on although the code is not what the sweep began with.
    """

    def __init__(
        self, seeds: int = 1, folds: int | None = None, file: str | None = None, changed_code: bool = False
    ) -> None:
        super().__init__(changed_code)
        refuse_repeats(seeds, folds)
        self.seeds = seeds
        self.folds = folds
        self.file = file

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
        if self.file is None:
            points = grid(overrides, self.loader)
        else:
            points = listed(self.file, overrides, self.loader)
        extras = [list(repeated(point, self.config.seed, self.seeds, self.folds)) for point in points]
        digits = len(str(sum(map(len, extras)) - 1))
        jobs: list[Job] = []
        for number, (point, own) in enumerate(zip(points, extras, strict=True)):
            jobs += jobs_of(len(jobs), number, point, own, digits)
        return jobs
