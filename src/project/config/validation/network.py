"""Try the network, metrics, optimizer and schedule before a run: build them, and run one batch through them.

Constructors and layers themselves report sizes that do not match. Before a job of a sweep starts, the network
is tried on torch's meta device, which allocates no memory.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from project.config.instantiate import build, build_task, resolve
from project.config.metrics import metric_fix
from project.config.parts import parts_of
from project.config.source_index import constant_of
from project.config.validation.data import training_length
from project.config.validation.declared_keys import flat
from project.errors import InputError, one_line
from project.modules.batch_checks import (
    explain_forward_error,
    require_label_logits,
    require_logits,
    require_values,
)
from project.modules.optim.training_length import TrainingLength
from project.modules.supervised import SupervisedModule
from project.runtime.yaml_files import to_yaml

REFUSALS = (RuntimeError, ValueError, IndexError, AssertionError, TypeError)
"""Exceptions that layers raise for images of the wrong shape."""
NUM_IMAGES = 2
"""Size of the trial batch; with one image some networks squeeze the batch dimension."""
MAX_ROWS = 64
"""Maximum size of the trial batch of metrics."""
ONLY_WEIGHTS = ("weights", "freeze")
"""Arguments of networks that load files or change no shapes."""


def try_task(module: L.LightningModule, config: Mapping[str, Any]) -> None:
    """Run a batch of blank inputs through the network of a module, and build its optimizer and schedule.

    Args:
        module: untrained module; its weights and the random state do not change.
        config: resolved configuration of the run, plain values.

    Raises:
        InputError: the network rejects inputs of `data.input_shape` or does not return
            `data.num_classes` outputs per input, or the optimizer, schedule or a metric rejects its options.
    """
    if not isinstance(module, SupervisedModule):
        return  # the inputs of other modules are unknown
    if (target_type := getattr(module, "TARGET_TYPE", None)) is not None:
        _try_inputs(module.network, config["data"], target_type)
        _try_metrics(module, config, target_type)
    known = training_length(dict(flat("", dict(config))))
    limited = any(config["trainer"].get(key, -1) not in (-1, None) for key in ("max_epochs", "max_steps"))
    steps = (known.steps or 1000) if limited else math.inf
    module.check_optimizer(TrainingLength(steps, max(1, (known.steps or 1000) // (known.epochs or 1))))


def refuse_wrong_parts(config: DictConfig) -> None:
    """Try the network and the metrics of a sweep's job; jobs with the same parts are tried once.

    Args:
        config: composed configuration with Hydra's own node.

    Raises:
        InputError: the network does not match the data, or a metric does not fit the task.
    """
    target_type = constant_of(config.task._target_, "TARGET_TYPE")
    if target_type is None:
        return
    data = {key: OmegaConf.select(config, f"data.{key}") for key in ("input_shape", "num_classes")}
    if "model" in config:
        plain: Any = OmegaConf.to_container(config.model, resolve=True)
        model = {key: value for key, value in plain.items() if key not in ONLY_WEIGHTS}
        _refuse(_network_problem(to_yaml(OmegaConf.create({"model": model, "data": data})), target_type))
    if config.get("metrics"):
        HydraConfig.instance().set_config(config)  # for values of the form ${hydra:…}
        values = resolve(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
        parts = {group: values[group] for group in parts_of(values["task"]).values()}
        parts |= {"task": values["task"], "data": data, "model": {"_target_": "torch.nn.Identity"}}
        _refuse(_metric_problem(to_yaml(OmegaConf.create(parts)), target_type))


def _refuse(problem: str) -> None:
    if problem:
        raise InputError(problem)


@lru_cache(maxsize=64)  # most jobs of a sweep share a network
def _network_problem(text: str, target_type: str) -> str:
    plain: Any = OmegaConf.to_container(OmegaConf.create(text))
    try:
        with torch.device("meta"):
            _try_inputs(build(plain, "model"), plain["data"], target_type)
    except InputError as error:
        return str(error)
    except Exception:  # an operation is missing on the meta device; the job itself reports real errors
        return ""
    return ""


@lru_cache(maxsize=64)
def _metric_problem(text: str, target_type: str) -> str:
    plain: Any = OmegaConf.to_container(OmegaConf.create(text))
    try:
        with torch.random.fork_rng(devices=[]):
            module = build_task(plain)
        if isinstance(module, SupervisedModule):
            _try_metrics(module, plain, target_type)
    except InputError as error:
        return str(error)
    except Exception:  # other parts of the task; the job itself reports their errors
        return ""
    return ""


def _try_metrics(module: SupervisedModule, config: Mapping[str, Any], target_type: str) -> None:
    size, nodes = config["data"].get("num_classes"), config.get("metrics")
    if isinstance(size, int) and nodes:
        fixes = {name: metric_fix(name, node, target_type, size) for name, node in nodes.items()}
        module.check_metrics(*_example_batch(target_type, size), fixes)


def _try_inputs(network: nn.Module, data: Mapping[str, Any], target_type: str) -> None:
    shape, outputs = data.get("input_shape"), data.get("num_classes")
    if not isinstance(shape, list | tuple):
        return
    images = torch.zeros(NUM_IMAGES, *shape)
    training = network.training
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            logits = network.eval()(images)
    except REFUSALS as error:
        if isinstance(error, InputError):
            raise
        if _needs_another_device(error):
            return
        network.train(training)
        raise InputError(explain_forward_error(network.eval(), images, one_line(error))) from error
    finally:
        network.train(training)
    if not isinstance(logits, Tensor):
        return
    if target_type == "class":
        targets = torch.zeros(NUM_IMAGES, dtype=torch.long)
        require_logits(logits, targets, outputs if isinstance(outputs, int) else None)
    elif isinstance(outputs, int):
        require = require_label_logits if target_type == "multilabel" else require_values
        require(logits, torch.zeros(NUM_IMAGES, outputs), outputs)


def _example_batch(target_type: str, size: int) -> tuple[Tensor, Tensor]:
    """Return right outputs (B, K) and their targets, of several classes, labels or values; B is not K."""
    rows = size + 1 if size < MAX_ROWS else MAX_ROWS - 1
    if target_type == "class":
        labels = torch.arange(rows) % size
        return torch.zeros(rows, size).scatter_(1, labels[:, None], 4.0), labels
    targets = torch.arange(rows)[:, None] + torch.arange(size)  # rows, K
    if target_type == "multilabel":
        labels = targets % 2
        return 8.0 * labels - 4.0, labels.float()
    return targets.float() + 0.1 * (targets % 2), targets.float()


def _needs_another_device(error: Exception) -> bool:
    """Return True if an operation is missing on the CPU or the meta device."""
    return isinstance(error, NotImplementedError | torch.OutOfMemoryError) or any(
        word in str(error).lower() for word in ("cuda", "not implemented", "device")
    )
