"""Profiling of training steps with torch's profiler."""

import gzip
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch.profiler import ProfilerActivity, profile, schedule

from project.modules.optim.training_length import TrainingLength
from project.runs.run_folder import RunFolder
from project.runtime.atomic_files import replace_text
from project.runtime.bounds import Range

log = logging.getLogger(__name__)

NUM_LOGGED_OPERATORS = 12
MAX_TRACE_BYTES = 256 * 2**20
"""Size above which a trace is compressed: trace viewers open .json.gz too."""
NAME_WIDTH = 40


class StepProfiler(Callback):
    """Profiles a few training steps on rank 0, on the CPU and on an NVIDIA GPU if the run uses one.

    Writes the trace `steps.pt.trace.json`, with a `ProfilerStep#N` span per step, and `operators.txt`,
    operators sorted by self time. Other steps are not slowed down, and batched hooks stay enabled;
    Lightning's `PyTorchProfiler` needs hooks for each batch.

    Args:
        folder: folder of the two files.
        wait: steps before the warm-up [5]; fewer if training is short.
        warmup: warm-up steps of the profiler, not recorded [2].
        active: recorded steps [5].
    """

    supports_batched_hooks = True

    def __init__(
        self,
        folder: str,
        wait: Annotated[int, Range(0)] = 5,
        warmup: Annotated[int, Range(0, 100)] = 2,
        active: Annotated[int, Range(1, 100)] = 5,
    ) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its messages concern only its developers
        self.folder = Path(folder)
        self.wait = wait
        self.warmup = warmup
        self.active = active
        self._profiler: profile | None = None
        self._is_written = False
        self._seen = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        length = TrainingLength.of(trainer)
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
        self._seen, self._is_written = trainer.global_step, False
        self._profiler.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.on_optimizer_step(trainer, pl_module)

    def on_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Advance the profiler if an optimizer step was taken."""
        if self._profiler is None or trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        self._profiler.step()
        if self._is_written:  # the profiler slows steps down even after recording
            self._stop()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()

    def _write(self, profiler: profile) -> None:
        self._is_written = True
        self.folder.mkdir(parents=True, exist_ok=True)
        trace = self.folder / "steps.pt.trace.json"
        partial = trace.with_name(f".{trace.name}")
        try:
            profiler.export_chrome_trace(str(partial))
            if partial.stat().st_size > MAX_TRACE_BYTES:
                partial, trace = _compress(partial), trace.with_name(f"{trace.name}.gz")
            partial.replace(trace)
        finally:
            partial.unlink(missing_ok=True)
        lines = operator_table(profiler.key_averages())
        replace_text(self.folder / "operators.txt", "\n".join(lines) + "\n")
        shown = [*lines[: NUM_LOGGED_OPERATORS + 1], "", f"trace  {RunFolder(trace).shown}"]
        log.info("\n%s\n", "\n".join(shown))


def operator_table(averages: Sequence[Any]) -> list[str]:
    """Return table rows of operators sorted by self time (GPU time if any), at most 80 characters wide."""
    operators = [each for each in averages if not each.key.startswith("ProfilerStep")]
    on_gpu = any(each.self_device_time_total for each in operators)
    times = {
        each.key: (each.self_device_time_total if on_gpu else each.self_cpu_time_total, each.count)
        for each in operators
    }
    total = sum(time for time, _ in times.values()) or 1.0
    device = "GPU" if on_gpu else "CPU"
    lines = [f"{'operator':{NAME_WIDTH}}{'calls':>8}{f'{device} ms':>12}{'share':>9}"]
    for name, (time, count) in sorted(times.items(), key=lambda item: -item[1][0]):
        short = name if len(name) < NAME_WIDTH else f"{name[: NAME_WIDTH - 2]}…"
        lines.append(f"{short:{NAME_WIDTH}}{count:8,}{time / 1000:12,.2f}{100 * time / total:8.1f}%")
    return lines


def _compress(file: Path) -> Path:
    compressed = file.with_name(f"{file.name}.gz")
    with file.open("rb") as source, gzip.open(compressed, "wb") as target:
        shutil.copyfileobj(source, target)
    file.unlink()
    return compressed
