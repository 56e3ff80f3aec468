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
    is the row of the class token; without a class token, the mean over all rows, as the network averages its
    tokens. It does not depend on the class.

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
    is_pooled = prefix == 0 or _pools_patches(network)
    rows = flow[:, prefix:].mean(dim=1) if is_pooled else flow[:, 0]
    return rows[:, prefix:].unflatten(1, (height, width))


def _pools_patches(network: nn.Module) -> bool:
    """Return True for timm's transformers that average their patch tokens."""
    pools = [getattr(module, "global_pool", None) for module in network.modules()]
    return any(isinstance(pool, str) and pool not in ("token", "") for pool in pools)


@torch.no_grad()
def attention_weights(network: nn.Module, names: Sequence[str], images: Tensor) -> list[Tensor]:
    """Return the attention (B, N, N) of each layer in order, averaged over heads; rows sum to 1."""
    found: list[Tensor] = []

    def ask(module: nn.Module, inputs: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return inputs, {**options, "need_weights": True, "average_attn_weights": True}

    with ExitStack() as stack:
        for name in dict.fromkeys(names):
            layer: Any = network.get_submodule(name)
            if isinstance(layer, nn.MultiheadAttention):
                stack.callback(layer.register_forward_pre_hook(ask, with_kwargs=True).remove)
                hook = layer.register_forward_hook(lambda _, __, output: found.append(output[1]))
            else:  # timm computes the weights outside of a fused operation only
                stack.callback(setattr, layer, "fused_attn", layer.fused_attn)
                layer.fused_attn = False
                hook = layer.attn_drop.register_forward_hook(
                    lambda _, __, output: found.append(output.mean(1))
                )
            stack.callback(hook.remove)
        network(images)
    return found
