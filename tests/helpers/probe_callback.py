"""Callback that records the state of the process during training; it adds no imports to a run."""

import gc
import sys
from typing import Any, ClassVar

from lightning.pytorch.callbacks import Callback

UNNEEDED = (
    *("torch._dynamo.eval_frame", "torch._inductor.utils", "sympy", "triton", "torchvision", "optuna"),
    *("matplotlib", "torchmetrics.functional", "pandas", "scipy", "sklearn", "PIL.Image"),
    *("rich", "jinja2", "pooch", "captum", "starlette", "onnx"),
)
"""Modules that a run on data=digits does not need."""


CONFIG_TARGETS = ("Probe",)
"""Classes that configurations may name, see `project.config.allowed_targets`."""


class Probe(Callback):
    """Records imported modules and the state of the garbage collector after each training batch."""

    found: ClassVar[dict[str, Any]] = {}

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        Probe.found["imported"] = [name for name in UNNEEDED if name in sys.modules]
        Probe.found["collecting"] = gc.isenabled()
        Probe.found["frozen"] = gc.get_freeze_count() > 100_000
