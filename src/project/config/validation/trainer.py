"""The trainer: devices that there are, precisions they know, numbers of batches that an epoch has."""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from project.config.validation import gpus
from project.config.validation.command_request import Asked
from project.config.validation.training_length import length

ON_GPU = ("gpu", "cuda")
SIXTEEN_BITS = ("16-mixed", "16")


def find_problems(right: Mapping[str, Any], command: Asked) -> Iterator[str]:
    """Yield what is wrong with the trainer's options; arguments as of `data.find_problems`."""
    if missing := list(_missing_devices(right, command)):
        yield from missing
    else:
        yield from _wrong_precision(right, command)
        yield from _wrong_batch_norm(right, command)
    yield from _wrong_batches(right)
    yield from _wrong_epochs(right)
    yield from _wrong_interval(right)


def _missing_devices(right: Mapping[str, Any], command: Asked) -> Iterator[str]:
    accelerator, devices = str(right.get("trainer.accelerator")), right.get("trainer.devices")
    if accelerator == "mps" and command.here and not gpus.may_be_apple():
        yield "trainer.accelerator=mps: for Apple's chips alone; set trainer.accelerator=auto"
    elif accelerator == "tpu" and command.here and find_spec("torch_xla") is None:
        yield "trainer.accelerator=tpu: needs torch_xla, which is not installed; set trainer.accelerator=auto"
    if accelerator not in ON_GPU or not command.here or (most := gpus.most()) is None:
        return
    if not most:
        yield (
            f"trainer.accelerator={accelerator}: there is no GPU here{gpus.hidden()}; set "
            "trainer.accelerator=cpu or auto"
        )
        return
    wanted = devices if isinstance(devices, int) else len(devices) if isinstance(devices, list) else 0
    if wanted > most:
        yield (
            f"trainer.devices={devices}: this machine has {most} GPUs{gpus.hidden()}; choose at most that "
            "many, or trainer.accelerator=cpu"
        )
    elif isinstance(devices, list) and max(devices) >= most:
        yield (
            f"trainer.devices={devices}: there is no GPU {max(devices)}; this machine has {most}"
            f"{gpus.hidden()}, counted from 0"
        )


def _is_on_cpu(right: Mapping[str, Any], command: Asked) -> bool:
    """Tell whether the run certainly trains on CPUs."""
    accelerator = right.get("trainer.accelerator")
    without = command.here and not gpus.may_be_apple() and find_spec("torch_xla") is None and gpus.most() == 0
    return accelerator == "cpu" or (accelerator == "auto" and without)


def _wrong_batch_norm(right: Mapping[str, Any], command: Asked) -> Iterator[str]:
    """On one device there is nothing to synchronize: of CPUs, `auto` is one."""
    several = right.get("trainer.devices") not in (1, "1", "auto") or right.get("trainer.num_nodes", 1) != 1
    if right.get("trainer.sync_batchnorm") is True and several and _is_on_cpu(right, command):
        yield (
            "trainer.sync_batchnorm=true: torch synchronizes batch norm on GPUs alone; set "
            "trainer.sync_batchnorm=false"
        )


def _wrong_precision(right: Mapping[str, Any], command: Asked) -> Iterator[str]:
    precision = str(right.get("trainer.precision"))
    if precision in SIXTEEN_BITS and _is_on_cpu(right, command):
        yield (
            f"trainer.precision={precision}: for GPUs; on a CPU take trainer.precision=bf16-mixed or 32-true"
        )
    if precision.startswith("transformer-engine") and find_spec("transformer_engine") is None:
        yield (
            f"trainer.precision={precision}: needs the package transformer_engine, which is not installed; "
            "take trainer.precision=bf16-mixed"
        )


def _wrong_batches(right: Mapping[str, Any]) -> Iterator[str]:
    batches = length(right).batches
    if batches is None:
        return
    interval, together = (
        right.get("trainer.val_check_interval"),
        right.get("trainer.accumulate_grad_batches"),
    )
    across = right.get("trainer.check_val_every_n_epoch", 1) is None
    if isinstance(interval, int) and not isinstance(interval, bool) and interval > batches and not across:
        yield (
            f"trainer.val_check_interval={interval}: an epoch has {batches:,} batches; choose at most that "
            "many, a fraction, or trainer.check_val_every_n_epoch=null to count across epochs"
        )
    if isinstance(together, int) and together > batches:
        yield (
            f"trainer.accumulate_grad_batches={together}: an epoch has {batches:,} batches; choose at most "
            "that many"
        )


def _wrong_epochs(right: Mapping[str, Any]) -> Iterator[str]:
    for unit in ("epochs", "steps"):
        least, most = right.get(f"trainer.min_{unit}"), right.get(f"trainer.max_{unit}")
        if isinstance(least, int) and isinstance(most, int) and 0 < most < least:
            yield f"trainer.min_{unit}={least}: more than trainer.max_{unit}={most}; choose at most that"


def _wrong_interval(right: Mapping[str, Any]) -> Iterator[str]:
    interval = right.get("trainer.val_check_interval")
    if right.get("trainer.check_val_every_n_epoch", 1) is None and (
        interval is None or isinstance(interval, float)
    ):
        yield (
            "trainer.check_val_every_n_epoch=null: validates after so many batches, of any epoch; "
            "say how many, as in trainer.val_check_interval=100, or set trainer.check_val_every_n_epoch=1"
        )
