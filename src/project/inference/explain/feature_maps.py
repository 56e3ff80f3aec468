"""Feature maps of a network, and their geometry on the image."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MIN_SIDE = 4
"""Least sides of a feature map that locates anything; deeper layers with smaller maps are passed over."""
MAX_DISTORTION = 1.5
"""Largest ratio of the strides of a feature map along its two sides."""
WINDOWED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


@dataclass(frozen=True)
class FeatureMap:
    """Output (B, D, h, w) of a module.

    Args:
        name: name of the module in the network.
        size: (h, w).
        start: center of the first cell along each side, pixels of the network's input.
        stride: distance of neighboring cells along each side, in the same pixels. Cells lie symmetrically
            in the image.
        scale: pixels of the network's input per pixel of the image, along each side.
    """

    name: str
    size: tuple[int, int]
    start: tuple[float, float]
    stride: tuple[float, float]
    scale: tuple[float, float]

    def place(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """Interpolate values (B, h, w) bilinearly at the pixels of an image; return (B, *size).

        Cells are placed where they look: without padding, a convolution has no cells near the border.
        """
        for axis, pixels in enumerate(size):
            centers = (torch.arange(pixels, device=values.device) + 0.5) * self.scale[axis] - 0.5
            last = self.size[axis] - 1
            cells = ((centers - self.start[axis]) / self.stride[axis]).clamp(0, last)
            below = cells.floor().long()
            share = (cells - below).to(values.dtype)
            share = share.view(-1, 1) if axis == 0 else share
            lower = values.index_select(axis + 1, below)
            values = lower.lerp(values.index_select(axis + 1, (below + 1).clamp(max=last)), share)
        return values


@dataclass(frozen=True)
class Anatomy:
    """Parts of a network that explanations need.

    Args:
        maps: feature maps in the order of computation, after the last attention layer.
        attention: names of the attention layers in the order of computation.
        patches: feature map of the patch embedding, before the first attention layer; None if there is none.
        is_pooled: the head does not depend on the places of the last feature map's cells, as after global
            pooling. Grad-CAM assumes that: its weights are means over places.
    """

    maps: list[FeatureMap]
    attention: list[str]
    patches: FeatureMap | None
    is_pooled: bool

    @property
    def deepest(self) -> FeatureMap | None:
        """The last feature map of at least `MIN_SIDE` cells along each side, else the last of the largest."""
        if large := [one for one in self.maps if min(one.size) >= MIN_SIDE]:
            return large[-1]
        return max(reversed(self.maps), key=lambda one: min(one.size), default=None)


def is_attention(module: nn.Module) -> bool:
    """Return True for attention layers whose weights can be read: those of torch, timm and transformers."""
    is_timm = hasattr(module, "fused_attn") and isinstance(getattr(module, "attn_drop", None), nn.Module)
    is_transformers = all(hasattr(module, name) for name in ("config", "scaling", "is_causal"))
    return isinstance(module, nn.MultiheadAttention) or is_timm or is_transformers


@torch.no_grad()
def dissect(network: nn.Module, images: Tensor) -> Anatomy:
    """Find the feature maps and attention layers of a network by a forward pass of images (B, C, H, W).

    A feature map is the output (B, D, h, w) of a module that runs once, after a convolution that is not a
    patch embedding.
    """
    found: list[FeatureMap] = []
    calls: dict[str, int] = {}
    attention: list[str] = []
    patches: list[FeatureMap] = []
    window: _Window | None = None
    has_features = False

    def record(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal window, has_features
        calls[name] = calls.get(name, 0) + 1
        if is_attention(module):
            attention.append(name)
            found.clear()
        if not isinstance(output, Tensor) or output.ndim != 4:
            return
        if isinstance(module, WINDOWED):
            window = window or _Window.of(module, inputs[0], images)
            window.pass_through(module, inputs[0], output)
        if window is None:
            return
        current = window.feature_map(name, output)
        if isinstance(module, nn.Conv2d) and not attention:
            patches[:] = [current]
            is_patch_embedding = module.stride == module.kernel_size and max(module.kernel_size) > 1
            has_features = has_features or not is_patch_embedding
        if has_features and window.is_undistorted(current):
            found.append(current)

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            hook = module.register_forward_hook(
                lambda module, inputs, output, name=name: record(name, module, inputs, output)
            )
            hooks.callback(hook.remove)
        network(images)
    maps = [one for one in found if calls[one.name] == 1 and one.name]
    is_pooled = bool(maps) and _ignores_places(network, maps[-1].name, images)
    return Anatomy(maps, attention, patches[0] if attention and patches else None, is_pooled)


def _ignores_places(network: nn.Module, name: str, images: Tensor) -> bool:
    """Return True if the logits stay the same when the cells of a feature map swap places."""
    wave = torch.arange(images.numel(), device=images.device).sin().to(images.dtype).view(images.shape)
    layer = network.get_submodule(name)

    def logits(change: Callable[[Tensor], Tensor]) -> Tensor:
        hook = layer.register_forward_hook(lambda _, __, output: change(output))
        try:
            return network(wave)
        finally:
            hook.remove()

    kept, swapped, without = (
        logits(torch.clone),
        logits(lambda cells: cells.flip(2, 3)),
        logits(torch.zeros_like),
    )
    return bool((swapped - kept).abs().max() < 1e-3 * (without - kept).abs().max())


class _Window:
    """Stride of the cells along a chain of convolutions and pooling layers.

    Araujo et al. 2019 (doi 10.23915/distill.00021), eq. 2. Layers next to the chain, such as shortcuts with a
    stride, have inputs of another size and are passed over.
    """

    def __init__(self, size: tuple[int, int], scale: tuple[float, float]) -> None:
        self.input_size = self.size = size
        self.scale = scale
        self.stride = (1, 1)

    @classmethod
    def of(cls, first: nn.Module, inputs: Tensor, images: Tensor) -> "_Window":
        """Return the window of the first layer's input, which is the image, padded or resized."""
        sizes = [(inputs.shape[axis], images.shape[axis]) for axis in (2, 3)]
        steps = _pair(first.stride)
        is_padded = all(0 <= own - given < step for (own, given), step in zip(sizes, steps, strict=True))
        scales = [1.0 if is_padded else own / given for own, given in sizes]
        return cls((sizes[0][0], sizes[1][0]), (scales[0], scales[1]))

    def pass_through(self, layer: nn.Module, inputs: Tensor, output: Tensor) -> None:
        if tuple(inputs.shape[2:]) == self.size:
            steps = _pair(layer.stride)
            self.stride = (self.stride[0] * steps[0], self.stride[1] * steps[1])
            self.size = (output.shape[2], output.shape[3])

    def feature_map(self, name: str, output: Tensor) -> FeatureMap:
        """Return a module's output as a feature map; off the chain, its cells divide the image evenly."""
        size = (output.shape[2], output.shape[3])
        strides = [
            float(self.stride[axis]) if size == self.size else self.input_size[axis] / size[axis]
            for axis in (0, 1)
        ]
        starts = [(self.input_size[axis] - 1 - strides[axis] * (size[axis] - 1)) / 2 for axis in (0, 1)]
        return FeatureMap(name, size, (starts[0], starts[1]), (strides[0], strides[1]), self.scale)

    def is_undistorted(self, one: FeatureMap) -> bool:
        """Return True unless the sides are not image sides, as in features (B, h, w, D), or a single cell."""
        ratios = [own / cells for own, cells in zip(self.input_size, one.size, strict=True)]
        return max(one.size) > 1 and max(ratios) <= MAX_DISTORTION * min(ratios)


def _pair(value: Any) -> tuple[Any, Any]:
    return (value[0], value[1]) if isinstance(value, tuple | list) else (value, value)
