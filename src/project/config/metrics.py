"""Metrics of a configuration: names, better directions, and arguments that follow from task and data."""

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from project.config.parts import parts_of
from project.config.signatures import Signature, signature_of
from project.config.source_index import constant_of, find_origin
from project.runs.metric_names import is_smaller_better
from project.runtime.yaml_files import raw_child

OPTIONS = (
    *("compute_on_cpu", "dist_sync_on_step", "process_group", "dist_sync_fn", "distributed_available_fn"),
    *("sync_on_compute", "compute_with_cache"),
)
"""Arguments of every `torchmetrics.Metric`."""
SIZES: Mapping[str, str] = {"multiclass": "num_classes", "multilabel": "num_labels"}
"""Argument that is the number of classes, by kind of classification."""

TASKS: Mapping[str, str] = {"class": "multiclass", "multilabel": "multilabel"}
"""Argument `task` of torchmetrics, by `TARGET_TYPE` of the task's class."""

EXAMPLES: Mapping[str, str] = {
    "class": "class probabilities (B, K) and class indices (B), such as torchmetrics.F1Score",
    "multilabel": "label probabilities (B, K) and labels 0 or 1 (B, K), such as torchmetrics.AUROC",
    "real": "real values, such as torchmetrics.MeanAbsoluteError",
}
"""Inputs of metrics with a class, by `TARGET_TYPE` of the task's class."""


def logged_metrics(task: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the metrics that a task logs while it trains, with `max`, `min`, or empty for unknown.

    Args:
        task: configuration of the task, not resolved.
        metrics: configuration of the metrics that it takes, by name.

    Returns:
        An empty dict for a class that does not declare its metrics in `METRICS`.
    """
    declared = constant_of(str(task.get("_target_")), "METRICS")
    if not isinstance(declared, dict):
        return {}
    kind = task_argument(str(task.get("_target_")))
    modes = {name: mode_of(node, kind) for name, node in metrics.items() if isinstance(node, Mapping)}
    measured = declared | (modes if task.get("train_metrics") is True else {})
    return {
        **{f"val/{name}": mode for name, mode in (declared | modes).items()},
        **{f"train/{name}": mode for name, mode in measured.items()},
    }


def task_argument(target: str) -> str:
    """Return the argument `task` of torchmetrics for a task's class, by its `TARGET_TYPE`; empty for none."""
    return TASKS.get(str(constant_of(target, "TARGET_TYPE")), "")


def mode_of(node: Mapping[str, Any], kind: str = "") -> str:
    """Return `max` or `min`, the better direction of a metric by its class; empty if that does not say it.

    Args:
        node: configuration of the metric.
        kind: default of its argument `task`, as of `task_argument`.
    """
    target = str(node.get("_target_"))
    is_higher = constant_of(target, "higher_is_better")
    module, _, name = target.rpartition(".")
    if is_higher is None and (origin := find_origin(module, name)) is not None:
        # `torchmetrics.F1Score` makes a `MulticlassF1Score`, which says it.
        made = f"{origin.module}.{str(node.get('task', kind)).capitalize()}{origin.name}"
        is_higher = constant_of(made, "higher_is_better")
    return {True: "max", False: "min"}.get(is_higher, "")


def metrics_of(config: DictConfig) -> dict[str, str]:
    """Return the metrics that a run logs while it trains (see `logged_metrics`), given its configuration."""
    nodes = {group: raw_child(config, group) for group in ("task", "metrics")}
    plain = {
        group: OmegaConf.to_container(node) if isinstance(node, DictConfig) else {}
        for group, node in nodes.items()
    }
    task: Any = plain["task"]
    metrics: Any = plain["metrics"] if "metrics" in parts_of(task).values() else {}
    return logged_metrics(task, metrics)


def best_mode(monitor: str, *, _root_: DictConfig) -> str:
    """Return `max` or `min`, the better direction of a metric; if no class says it, by the metric's name."""
    known = metrics_of(_root_)
    name = str(monitor) if monitor in known else re.sub(r"_[^/_]+$", "", str(monitor))  # of several values
    return known.get(name) or ("min" if is_smaller_better(str(monitor)) else "max")


def metric_fix(name: str, node: Any, target_type: str, num_classes: int) -> str:
    """Return the fix of a metric that does not fit the task, for the end of a message.

    Args:
        name: of the metric.
        node: its configuration.
        target_type: `TARGET_TYPE` of the task's class.
        num_classes: number of classes, labels or values.
    """
    kind = TASKS.get(target_type)
    right = {"task": kind, **({SIZES[kind]: num_classes} if kind else {})}
    if kind and isinstance(node, Mapping):
        given = [key for key in ("task", *SIZES.values()) if key in node]
        if wrong := [key for key in given if node[key] != right.get(key)]:
            keys = " and ".join(f"metrics.{name}.{key}" for key in wrong)
            return f"leave out {keys}, which follow{'s' * (len(wrong) == 1)} from the task and the data"
    return f"name a metric of {EXAMPLES.get(target_type, 'these')}"


def filled_arguments(config: DictConfig) -> tuple[str, ...]:
    """Return the arguments of metrics that `fill_arguments` fills in."""
    task = raw_child(config, "task")
    is_known = isinstance(task, DictConfig) and task_argument(str(raw_child(task, "_target_")))
    return ("task", *SIZES.values()) if is_known else ()


def fill_arguments(config: DictConfig) -> None:
    """Fill in the arguments `task`, `num_classes` and `num_labels` of metrics that take and lack them.

    They follow from `TARGET_TYPE` of the task's class and from `data.num_classes`.
    """
    nodes, task, data = (raw_child(config, group) for group in ("metrics", "task", "data"))
    if not isinstance(nodes, DictConfig) or not nodes:
        return
    kind = task_argument(str(raw_child(task, "_target_"))) if isinstance(task, DictConfig) else ""
    has_size = isinstance(data, DictConfig) and "num_classes" in data
    for name in map(str, nodes):
        node = raw_child(nodes, name)
        found = signature_of(str(raw_child(node, "_target_"))) if isinstance(node, DictConfig) else None
        if not isinstance(found, Signature):
            continue
        with open_dict(node):
            if kind and "task" in found.arguments and "task" not in node:
                node["task"] = kind
            of_node = raw_child(node, "task") if "task" in found.arguments else None
            for classification, size in SIZES.items():
                fits = of_node in (None, classification)
                if has_size and fits and size in found.arguments and size not in node:
                    node[size] = "${data.num_classes}"
