"""Run the work of one run: in this process, in one that torchrun started, or in one for each device."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from omegaconf import DictConfig

from project.config.cli import ending_on_errors
from project.runs.lock import run_lock
from project.runs.run_context import RunContext
from project.runs.run_folder import describe
from project.runtime import slurm, torchrun
from project.runtime.signals import Stopped
from project.training.ddp.launch import count_ranks, run_ranks
from project.training.ddp.supervisor import RankFailedError


@contextmanager
def run_scope(context: RunContext) -> Iterator[None]:
    """Guard a run from its start to its end.

    The process locks the run folder, removes the folder if an error comes before there is anything to keep,
    and has SLURM start a single run's job again when its time is over. A single run's errors are reported
    before Hydra adds lines of its own; a sweep's launcher reports those of its jobs.

    Raises:
        SystemExit: a single run failed; the error has been reported.
        Stopped: the process received a signal.
    """
    try:
        with ExitStack() as stack:
            if not context.in_sweep:
                stack.enter_context(ending_on_errors())
            if context.is_first:
                stack.enter_context(run_lock(context.folder.path))
                stack.enter_context(context.folder.removed_if_untrained(job=context.in_sweep))
            yield
    except Stopped as stop:
        if stop.signum == signal.SIGUSR1 and context.is_first and not context.in_sweep:
            slurm.requeue()
        raise


def run_on_devices(work: Callable[[], float | None], config: DictConfig, context: RunContext) -> float | None:
    """Do a run's work once for each of its devices.

    Args:
        work: trains in one process and returns the value of `monitor`.
        config: composed; other processes that torchrun or srun started receive it from here.
        context: of the run.

    Returns:
        The value of `monitor`.
    """
    if torchrun.environment() is not None:
        torchrun.broadcast_config(config)
        return work()
    ranks = count_ranks(config.trainer.accelerator, config.trainer.devices)
    if ranks == 1:
        return work()
    try:
        run_ranks(work, ranks)
    except BaseException as error:  # rank 0, which keeps the status, may have been killed
        text = str(error) if isinstance(error, RankFailedError) else describe(error)
        context.folder.record_end(text, interrupted=isinstance(error, Stopped))
        raise
    value: float | None = context.folder.read_status()["value"]
    return value
