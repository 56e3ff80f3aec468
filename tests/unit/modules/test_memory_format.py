"""Networks that PyTorch cannot train in channels-last memory format on some CPUs."""

import pytest
import torch
from torch import nn

from project.errors import InputError
from project.modules.memory_format import refuse_unsafe_convolutions
from project.modules.networks.resnet import ResNet

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    return monkeypatch


def test_narrow_strided_1x1_convolutions_are_refused_without_avx512(capability: pytest.MonkeyPatch) -> None:
    narrow = ResNet((3, 8, 8), 10, depth=8, width=4)
    with pytest.raises(InputError, match=r"^channels_last=true: .*1×1 convolution of 4 channels.*at least 8"):
        refuse_unsafe_convolutions(narrow, CPU)
    with pytest.raises(InputError, match="of 16 channels"):
        refuse_unsafe_convolutions(nn.Conv2d(16, 16, 1, stride=2, groups=4), CPU)
    refuse_unsafe_convolutions(narrow, GPU)
    refuse_unsafe_convolutions(narrow.requires_grad_(False), CPU)
    for wide in (
        ResNet((3, 8, 8), 10, depth=8, width=8),
        nn.Conv2d(4, 8, 1),
        nn.Conv2d(4, 8, 3, stride=2),
    ):
        refuse_unsafe_convolutions(wide, CPU)
    capability.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    refuse_unsafe_convolutions(narrow.requires_grad_(), CPU)
