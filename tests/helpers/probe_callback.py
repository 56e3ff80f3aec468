"""A callback that looks about while a run trains. Imports nothing that a run does not import itself."""

import gc
import sys
from typing import Any, ClassVar

from lightning.pytorch.callbacks import Callback

UNNEEDED = (
    *("torch._dynamo.eval_frame", "torch._inductor.utils", "sympy", "triton", "torchvision", "optuna"),
    *("matplotlib", "torchmetrics.functional", "pandas", "scipy", "sklearn", "PIL.Image"),
    *("rich", "jinja2", "pooch", "captum", "starlette", "onnx"),
)
"""Modules that a run on the digits does not need."""


CONFIG_TARGETS = ("Probe",)
"""What configurations may name (see project.config.allowed_targets)."""


class Probe(Callback):
    """Keeps what it saw last."""

    found: ClassVar[dict[str, Any]] = {}

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        Probe.found["imported"] = [name for name in UNNEEDED if name in sys.modules]
        Probe.found["collecting"] = gc.isenabled()
        Probe.found["frozen"] = gc.get_freeze_count() > 100_000
