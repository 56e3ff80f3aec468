"""Attention rollout of vision transformers."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from project.inference.explain.feature_maps import Anatomy


def attention_rollout(network: nn.Module, anatomy: Anatomy, images: Tensor) -> Tensor:
    """Return the share (B, h, w) of each patch in the features of the head (Abnar & Zuidema 2020, sec. 3).

    Attention is averaged over heads, and the residual connection counts as much as the attention. The result
    is the mean row of the tokens that the head reads: the class token, or the patches if it averages these.
    It does not depend on the class.

    Args:
        network: the transformer.
        anatomy: its parts, with a patch embedding.
        images: network input (B, C, H, W).

    Raises:
        ValueError: the attention is not one among all patches of an image.
    """
    assert anatomy.patches is not None
    height, width = anatomy.patches.size
    flow: Tensor | None = None
    for weights in attention_weights(network, anatomy.attention, images):
        num_tokens = weights.shape[-1]
        if len(weights) != len(images) or weights.shape[1] != num_tokens or num_tokens < height * width:
            raise ValueError("the attention is not one among all patches of an image")
        mixed = (weights + torch.eye(num_tokens, device=weights.device)) / 2
        flow = mixed if flow is None else mixed @ flow
    assert flow is not None
    prefix = flow.shape[-1] - height * width  # class token, registers
    read = tokens_of_head(network, anatomy.attention[-1], images)[:prefix]
    rows = flow[:, :prefix][:, read] if read.any() else flow[:, prefix:]
    return rows.mean(dim=1)[:, prefix:].unflatten(1, (height, width))


def tokens_of_head(network: nn.Module, name: str, images: Tensor) -> Tensor:
    """Return which tokens (N,) of the last attention layer's output the logits depend on.

    Later layers transform each token on its own, so the others have a gradient of zero.
    """
    tokens: Tensor | None = None

    def replace(module: nn.Module, inputs: Any, output: Any) -> Any:
        nonlocal tokens
        found, rest = (output, None) if isinstance(output, Tensor) else (output[0], output[1:])
        tokens = found.detach().requires_grad_()
        return tokens if rest is None else (tokens, *rest)

    layer = network.get_submodule(name)
    hook = layer.register_forward_hook(replace)
    try:
        with torch.enable_grad():
            logits = network(images)
            wave = torch.arange(logits.numel(), device=logits.device).cos().view_as(logits)
            assert tokens is not None
            (gradient,) = torch.autograd.grad((logits * wave).sum(), tokens)
    finally:
        hook.remove()
    others = (0, 2) if getattr(layer, "batch_first", True) else (1, 2)
    return gradient.abs().sum(others) > 0


@torch.no_grad()
def attention_weights(network: nn.Module, names: Sequence[str], images: Tensor) -> list[Tensor]:
    """Return the attention (B, N, N) of each layer in order, averaged over heads; rows sum to 1.

    Raises:
        ValueError: a layer of transformers does not return its weights.
    """
    found: list[Tensor] = []

    def ask(module: nn.Module, inputs: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return inputs, {**options, "need_weights": True, "average_attn_weights": True}

    def keep_second(module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, tuple) or not isinstance(output[1], Tensor):
            raise ValueError("the attention weights cannot be read")
        found.append(output[1] if output[1].ndim == 3 else output[1].mean(1))

    with ExitStack() as stack:
        model: Any
        for model in network.modules():
            if hasattr(model, "set_attn_implementation"):  # transformers: fused operations have no weights
                stack.callback(model.set_attn_implementation, model.config._attn_implementation)
                model.set_attn_implementation("eager")
        for name in dict.fromkeys(names):
            layer: Any = network.get_submodule(name)
            if isinstance(layer, nn.MultiheadAttention):
                stack.callback(layer.register_forward_pre_hook(ask, with_kwargs=True).remove)
            if hasattr(layer, "fused_attn"):  # timm computes the weights outside of a fused operation only
                stack.callback(setattr, layer, "fused_attn", layer.fused_attn)
                layer.fused_attn = False
                hook = layer.attn_drop.register_forward_hook(
                    lambda _, __, output: found.append(output.mean(1))
                )
            else:
                hook = layer.register_forward_hook(keep_second)
            stack.callback(hook.remove)
        network(images)
    return found
