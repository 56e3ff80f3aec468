"""Networks for which the channels-last memory format is unsafe."""

import torch
from torch import nn

from project.errors import InputError

UNSAFE_CAPABILITIES = ("AVX2",)
"""Instruction sets whose convolution kernel has the fault, named as by `torch.backends.cpu`."""
UNSAFE_CHANNELS = 8


def refuse_unsafe_convolutions(network: nn.Module, device: torch.device) -> None:
    """Refuse a network that would corrupt memory when it trains in channels-last memory format.

    PyTorch's CPU kernel for the weight gradient of a strided 1×1 convolution writes outside its memory if the
    input has fewer than 8 channels in channels-last format (seen with torch 2.15 on a CPU without AVX-512:
    the process ends with "corrupted size vs. prev_size", or continues with damaged memory).

    Raises:
        InputError: the network has such a layer, and the device is a CPU without AVX-512.
    """
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() not in UNSAFE_CAPABILITIES:
        return
    for name, layer in network.named_modules():
        if not isinstance(layer, nn.Conv2d) or not layer.weight.requires_grad:
            continue
        is_strided_1x1 = layer.kernel_size == (1, 1) and max(layer.stride) > 1
        if is_strided_1x1 and layer.in_channels // layer.groups < UNSAFE_CHANNELS:
            raise InputError(
                f"channels_last=true: the gradient of `{name}`, a strided 1×1 convolution of "
                f"{layer.in_channels} channels, corrupts memory in PyTorch on this CPU (expected at least "
                f"{UNSAFE_CHANNELS} channels); set channels_last=false, or widen the network"
            )
