"""Search for the first layer whose output is NaN or infinite."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn


class NonFiniteOutput(NamedTuple):
    """Layer that returned NaN or infinity.

    Args:
        layer: dotted name of the module.
        kind: its class.
        has_finite_inputs: True if the layer itself is the origin.
    """

    layer: str
    kind: str
    has_finite_inputs: bool


@contextmanager
def watch_outputs(module: nn.Module) -> Iterator[list[NonFiniteOutput]]:
    """Record the submodules that return NaN or infinity in training mode, in the order of their calls.

    Each call synchronizes with the device.
    """
    found: list[NonFiniteOutput] = []

    def watch(name: str, layer: nn.Module) -> Any:
        def check(_: nn.Module, inputs: Any, outputs: Any) -> None:
            if module.training and not is_finite(outputs):
                found.append(NonFiniteOutput(name, type(layer).__name__, is_finite(inputs)))

        return layer.register_forward_hook(check)

    handles = [watch(name, layer) for name, layer in module.named_modules() if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def is_finite(values: Any) -> bool:
    """Return True if all tensors of nested tuples, lists and dicts are finite."""
    if isinstance(values, Tensor):
        return not values.is_floating_point() or bool(values.isfinite().all())
    if isinstance(values, dict):
        values = values.values()
    return not isinstance(values, tuple | list | type({}.values())) or all(map(is_finite, values))


def first_non_finite_weight(module: nn.Module) -> str | None:
    """Return the name of the first parameter that holds NaN or infinity; None if all are finite."""
    return next((name for name, weight in module.named_parameters() if not is_finite(weight.detach())), None)


def last_non_finite_gradient(module: nn.Module) -> str | None:
    """Return the last parameter whose gradient holds NaN or infinity: the first one in a backward pass."""
    gradients = [(name, weight.grad) for name, weight in module.named_parameters() if weight.grad is not None]
    return next((name for name, gradient in reversed(gradients) if not is_finite(gradient)), None)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a module's parameters and buffers, on the CPU."""
    return {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}


def to_cpu(batch: Any) -> Any:
    """Return a batch of nested tuples, lists and dicts with its tensors on the CPU."""
    if isinstance(batch, Tensor):
        return batch.detach().to("cpu")
    if isinstance(batch, dict):
        return {name: to_cpu(value) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return [to_cpu(value) for value in batch]
    return batch if isinstance(batch, int | float | str | bool | type(None)) else repr(batch)
