"""Where the time of a few steps goes."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch.profiler import ProfilerActivity, profile, schedule

from project.errors import InputError
from project.modules.optim.schedules import Length
from project.runs.run_folder import RunFolder
from project.runtime.bounds import Range
from project.runtime.files import replace_text

log = logging.getLogger(__name__)

ROWS = 12
"""Operators in the table on the screen."""
MOST_BYTES = 256 * 2**20
"""A larger trace is packed: browsers take .json.gz too."""
WIDTH = 40


class Profile(Callback):
    """Record the operators of some steps with torch's profiler, on the CPU and, if there is one, the GPU.

    Writes `steps.pt.trace.json`, with a `ProfilerStep#N` around each step, and `operators.txt`, the
    operators by their own time. The other steps of the training cost nothing more, and chunks of batches are
    trained as ever: not Lightning's `PyTorchProfiler`, which has every batch visited. Rank 0 records.

    Args:
        folder: where they are written.
        wait: steps before, which are not looked at; fewer where the training is short.
        warmup: steps in which the profiler itself settles.
        active: steps that are recorded.

    Raises:
        InputError: nothing would be recorded.
    """

    visits_chunks = True

    def __init__(
        self,
        folder: str,
        wait: Annotated[int, Range(0)] = 5,
        warmup: Annotated[int, Range(0, 100)] = 2,
        active: Annotated[int, Range(1, 100)] = 5,
    ) -> None:
        for name, value, least in (("wait", wait, 0), ("warmup", warmup, 0), ("active", active, 1)):
            if value < least:
                raise InputError(f"callbacks.profiler.{name}={value}: must be at least {least}")
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its messages are for its developers
        self.folder = Path(folder)
        self.wait = wait
        self.warmup = warmup
        self.active = active
        self._profiler: profile | None = None
        self._written = False
        self._seen = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count steps."""
        if not trainer.is_global_zero:
            return
        length = Length.of(trainer)
        wait = int(max(0, min(self.wait, length.steps - length.done - self.warmup - self.active)))
        activities = [ProfilerActivity.CPU]
        if pl_module.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(
            activities=activities,
            schedule=schedule(wait=wait, warmup=self.warmup, active=self.active, repeat=1),
            on_trace_ready=self._write,
            acc_events=True,
        )
        self._seen, self._written = trainer.global_step, False
        self._profiler.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step, unless it was done within the chunk."""
        self.on_step(trainer, pl_module)

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count a step of the optimizer."""
        if self._profiler is None or trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        self._profiler.step()
        if self._written:  # its steps cost time even when there is nothing left to record
            self._stop()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what there is, where the training was shorter than that."""
        self._stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Write what there is."""
        self._stop()

    def _stop(self) -> None:
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()

    def _write(self, profiler: profile) -> None:
        self._written = True
        self.folder.mkdir(parents=True, exist_ok=True)
        trace = self.folder / "steps.pt.trace.json"
        partial = trace.with_name(f".{trace.name}")
        try:
            profiler.export_chrome_trace(str(partial))
            if partial.stat().st_size > MOST_BYTES:
                partial, trace = _packed(partial), trace.with_name(f"{trace.name}.gz")
            partial.replace(trace)
        finally:
            partial.unlink(missing_ok=True)
        lines = table(profiler.key_averages())
        replace_text(self.folder / "operators.txt", "\n".join(lines) + "\n")
        log.info("\n%s\n", "\n".join([*lines[: ROWS + 1], "", f"trace  {RunFolder(trace).shown}"]))


def table(averages: Sequence[Any]) -> list[str]:
    """Operators by the time that they take themselves, on the GPU where there is one, in 80 columns.

    Args:
        averages: of `torch.profiler.profile.key_averages`.
    """
    shown = [one for one in averages if not one.key.startswith("ProfilerStep")]
    on_gpu = any(one.self_device_time_total for one in shown)
    times = {
        one.key: (one.self_device_time_total if on_gpu else one.self_cpu_time_total, one.count)
        for one in shown
    }
    total = sum(time for time, _ in times.values()) or 1.0
    where = "GPU" if on_gpu else "CPU"
    lines = [f"{'operator':{WIDTH}}{'calls':>8}{f'{where} ms':>12}{'share':>9}"]
    for name, (time, count) in sorted(times.items(), key=lambda item: -item[1][0]):
        short = name if len(name) < WIDTH else f"{name[: WIDTH - 2]}…"
        lines.append(f"{short:{WIDTH}}{count:8,}{time / 1000:12,.2f}{100 * time / total:8.1f}%")
    return lines


def _packed(file: Path) -> Path:
    import gzip
    import shutil

    packed = file.with_name(f"{file.name}.gz")
    with file.open("rb") as source, gzip.open(packed, "wb") as target:
        shutil.copyfileobj(source, target)
    file.unlink()
    return packed
