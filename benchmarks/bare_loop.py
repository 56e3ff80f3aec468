"""A bare training loop, and a Lightning callback that times it between a run's epochs for comparison."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from stopwatch import Stopwatch, read_clocks
from torch import Tensor, nn
from torch.optim import Optimizer
from torchvision.datasets import CIFAR10, MNIST

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


CONFIG_TARGETS = ("BareLoopTimer",)
"""Classes that configurations may name (see project.config.allowed_targets)."""


class BareLoop:
    """Train without a framework: index, forward, backward, step.

    Args:
        network: network to train.
        optimizer: optimizer of the network's parameters.
        images: normalized images (N, C, H, W), float, on the network's device.
        labels: labels (N,), long.
        batch_size: images per step.
        batches: maximum number of steps per epoch (None: all images).
        precision: precision as in `lightning.Trainer`.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        batches: int | None,
        precision: str,
    ) -> None:
        self.network = network.train()
        self.optimizer = optimizer
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.batches = batches
        dtype = AUTOCAST.get(precision)
        self.autocast: Callable[[], AbstractContextManager[object]] = (
            nullcontext if dtype is None else partial(torch.autocast, images.device.type, dtype)
        )

    def epoch(self) -> int:
        """Train an epoch; return its steps."""
        count = len(self.images)
        order = torch.randperm(count, device=self.images.device)
        starts = range(0, count, self.batch_size)[: self.batches]
        for start in starts:
            self.step(order[start : start + self.batch_size])
        return len(starts)

    def step(self, index: Tensor) -> None:
        """Take one step on these images (B,)."""
        images, labels = self.images[index], self.labels[index]
        self.optimizer.zero_grad()
        with self.autocast():
            loss = F.cross_entropy(self.network(images), labels)
        loss.backward()
        self.optimizer.step()


class GraphedLoop(BareLoop):
    """The same with one step captured as a CUDA graph; an incomplete last batch is left out.

    Args:
        loop: arguments of `BareLoop`.
        options: keyword arguments of `BareLoop`.
    """

    def __init__(self, *loop: object, **options: object) -> None:
        super().__init__(*loop, **options)  # type: ignore[arg-type]
        if isinstance(self.autocast, partial):  # casts of one replay are no use to the next
            self.autocast = partial(self.autocast, cache_enabled=False)
        self.index = torch.arange(self.batch_size, device=self.images.device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # lazy initializations must not be captured
            for _ in range(3):
                self.step(self.index)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.step(self.index)

    def epoch(self) -> int:
        """Train an epoch; return its steps."""
        count = len(self.images)
        order = torch.randperm(count, device=self.images.device)
        starts = range(0, count - self.batch_size + 1, self.batch_size)[: self.batches]
        for start in starts:
            self.index.copy_(order[start : start + self.batch_size])
            self.graph.replay()
        return len(starts)


class BareLoopTimer(Stopwatch):
    """Times the run's epochs and, before and after each, an epoch of a bare loop with a copy of the network.

    The file also has `bare` and, on a GPU, `graph` (lists of [wall, CPU] seconds), and `…_steps` per epoch.

    Args:
        file: file for the measurements.
        data: folder with MNIST/raw, or CIFAR-10 as official files or decoded (`cifar10_arrays`).
        shape: image shape (C, H, W), by which the data set is chosen.
        batch_size: images per step.
        mean: mean of each channel in [0, 1].
        std: standard deviation of each channel in [0, 1].
        channels_last: use the channels-last memory format.
        precision: precision as in `lightning.Trainer`.
        batches: maximum number of steps per epoch (None: all images).
    """

    def __init__(
        self,
        file: str,
        data: str,
        shape: Sequence[int],
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        channels_last: bool,
        precision: str,
        batches: int | None = None,
    ) -> None:
        super().__init__(file)
        self.data = Path(data)
        self.channels = shape[0]
        self.mean = torch.tensor(mean).view(-1, 1, 1)  # C, 1, 1
        self.std = torch.tensor(std).view(-1, 1, 1)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.options = {"batch_size": batch_size, "batches": batches, "precision": precision}
        self.loops: dict[str, BareLoop] = {}

    def between(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Train an epoch of each bare loop."""
        if not self.loops:
            self._build(trainer, pl_module)
        for name, loop in self.loops.items():
            began = read_clocks(pl_module.device)
            self.measured[f"{name}_steps"] = loop.epoch()
            self.measured.setdefault(name, []).append(read_clocks(pl_module.device).since(began))

    def _build(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        images, labels = self._read(pl_module.device)
        kinds = {"bare": BareLoop} | ({"graph": GraphedLoop} if pl_module.device.type == "cuda" else {})
        for name, kind in kinds.items():
            assert isinstance(pl_module.network, nn.Module)
            network = copy.deepcopy(pl_module.network)
            optimizer = _like(trainer.optimizers[0], network, capturable=name == "graph")
            self.loops[name] = kind(network, optimizer, images, labels, **self.options)  # type: ignore[arg-type]

    def _read(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return normalized training images (N, C, H, W), float, and labels (N,), long."""
        if self.channels == 1:
            mnist = MNIST(str(self.data), train=True)
            pixels, labels = mnist.data[:, None], mnist.targets
        elif (self.data / "cifar-10-batches-py").is_dir():
            cifar10 = CIFAR10(str(self.data), train=True)
            pixels, labels = torch.from_numpy(cifar10.data), torch.tensor(cifar10.targets)
        else:
            files = (self.data / f"cifar10_arrays/train_{part}.npy" for part in ("images", "labels"))
            pixels, labels = (torch.from_numpy(np.load(file)) for file in files)
        if pixels.shape[-1] == 3:
            pixels = pixels.permute(0, 3, 1, 2)
        images = pixels.float().div_(255).sub_(self.mean).div_(self.std)
        return images.contiguous(memory_format=self.memory_format).to(device), labels.to(device)


def _like(optimizer: Optimizer, network: nn.Module, *, capturable: bool) -> Optimizer:
    """Return an optimizer of the same class and options for another network."""
    while hasattr(optimizer, "optimizer"):  # a wrapper from Lightning
        optimizer = optimizer.optimizer
    options = {name: optimizer.param_groups[0].get(name, value) for name, value in optimizer.defaults.items()}
    if capturable and "capturable" in options:
        options["capturable"] = True
    return type(optimizer)(network.parameters(), **options)
