"""Tables of population-based training: the epochs and values of each job, and the lineage of the best one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import Job
from project.runtime.console import table
from project.runtime.text import plural
from project.sweeps.job_table import best_job, column_titles, warn_if_unwritable, write_rows
from project.sweeps.sweepers.pausing import cell_text, score, values_of

MAX_ROWS = 20


class Stage(NamedTuple):
    """Epochs that a job trained.

    Args:
        job: the job.
        first: first epoch, from 1.
        last: last epoch.
        value: value of the monitored metric after the last epoch.
    """

    job: Job
    first: int
    last: int
    value: float | None

    @property
    def epochs(self) -> str:
        """First and last epoch, for a table."""
        return f"{self.first}–{self.last}"


def epochs_of(job: Job, interval_epochs: int) -> int:
    """Return the epochs after which a job paused last, including those of its ancestors."""
    return job.start_epoch + len(job.pause_values) * interval_epochs


def stages_of(job: Job, interval_epochs: int) -> list[Stage]:
    """Return the generations that a job trained; early stopping may have ended the last one earlier."""
    stages = []
    for number, value in enumerate(values_of(job)):
        before = job.start_epoch + number * interval_epochs
        stages.append(Stage(job, before + 1, before + interval_epochs, value))
    return stages


def lineage_of(jobs: Sequence[Job], job: Job, interval_epochs: int) -> list[Stage]:
    """Return one stage for each job whose training led to the weights of a job, from the first epoch on."""
    found: list[Stage] = []
    while True:
        stages = stages_of(job, interval_epochs)
        kept = [stage for stage in stages if not found or stage.last < found[0].first]
        found.insert(0, kept[-1]._replace(first=kept[0].first))
        if job.parent is None:
            return found
        job = jobs[job.parent]


def write_report(
    folder: SweepFolder, jobs: Sequence[Job], interval_epochs: int, monitor: str, mode: str
) -> str:
    """Write `lineage.csv`, with a row for each job and generation.

    Returns:
        Text with the jobs that trained longest, and the values by which the best one was trained.
    """
    titles = column_titles(jobs)

    def settings(job: Job) -> list[str]:
        return [job.settings.get(key, "") for key in titles]

    generations = [stage for job in jobs for stage in stages_of(job, interval_epochs)]
    rows: list[list[Any]] = []
    for job, first, last, value in generations:
        rows.append([job.number, job.parent, job.replaced, first, last, *settings(job), value])
    with warn_if_unwritable(folder.shown):
        head = ["job", "parent", "replaced", "first_epoch", "last_epoch", *titles, monitor]
        write_rows(folder.path / "lineage.csv", head, rows)

    def place(stage: Stage) -> tuple[float, ...]:
        return -stage.last, -score(stage.value, mode), stage.job.number

    trained = {stage.job.number: stage._replace(first=stage.job.start_epoch + 1) for stage in generations}
    rows = []
    for stage in sorted(trained.values(), key=place)[:MAX_ROWS]:
        job = stage.job
        origin = "" if job.parent is None else f"{job.parent} after {job.start_epoch}"
        rows.append([job.number, job.state, origin, stage.epochs, *settings(job), stage.value])
    lines = [
        f"jobs of the population, with their last {monitor}:",
        _table(["job", "state", "copy of", "epochs", *titles.values(), monitor], rows),
    ]
    if more := len(trained) - len(rows):
        lines.append(f"… and {plural(more, 'job')} more, in {folder.shown}/lineage.csv")
    if (best := best_job(jobs, mode)) is not None:
        rows = [
            [stage.epochs, stage.job.number, *settings(stage.job), stage.value]
            for stage in lineage_of(jobs, best, interval_epochs)
        ]
        lines += [
            f"\nvalues by which {best.name} was trained:",
            _table(["epochs", "job", *titles.values(), monitor], rows),
        ]
    return "\n".join(lines)


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return table(heads, [[cell_text(cell) for cell in row] for row in rows])
