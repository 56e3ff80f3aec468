"""Compare the preset cifar10_94 with the same recipe as a bare PyTorch loop.

    python benchmarks/cifar10_94.py --check               compare the losses of all steps of one epoch
    python benchmarks/cifar10_94.py --runs 40             compare time and accuracy of full trainings on a GPU

Overrides of the training command may follow: data=image_folder data.path=DIR, trainer.precision=32-true,
compile=true. `--check` trains both on the same batches. A timed training begins with images in GPU memory and
ends with the test accuracy. It includes whitening, augmentation and the test-time augmentation by six views,
but not building and compiling the networks or the warm-up training. Clocks are read after synchronization.
"""

import argparse
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.nn import functional as F

from project.config.instantiate import build, build_task, resolve
from project.config.resolvers import register_resolvers
from project.datamodules.image_base import ImageDataModule
from project.modules.classifier import ImageClassifier

CONF = Path(__file__).resolve().parent.parent / "conf"
PRECISIONS = {"bf16-mixed": torch.bfloat16, "32-true": torch.float32, "64-true": torch.float64}


def main() -> None:
    """Compare losses or times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--steps", type=int, help="number of steps of --check; default: one epoch")
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments, more = parser.parse_known_args()
    overrides = ["experiment=cifar10_94", "paths.run=unused", *arguments.overrides, *more]
    if arguments.check:
        check(overrides, arguments.steps)
    elif torch.cuda.is_available():
        race(overrides, arguments.runs)
    else:
        parser.error("timing needs a GPU; --check does not")


def check(overrides: list[str], steps: int | None) -> None:
    """Print the losses of both, and their largest difference."""
    config = composed(overrides)
    epochs = config["trainer"]["max_epochs"]
    ours, data = make_module(config), build(config, "data")
    data.setup("fit")
    steps_per_epoch = len(data.train_dataloader())
    recorder = Losses(steps or steps_per_epoch)
    make_trainer(config, [recorder]).fit(ours, data)

    bare = make_module(config)
    device = ours.device
    precision = config["trainer"]["precision"]
    dtype = PRECISIONS[precision]
    bare.network.to(device, dtype=None if precision.endswith("mixed") else dtype)
    recipe = Recipe(bare.network, steps_per_epoch, epochs, dtype)
    bare.network.initialize(data.training_sample())  # the same whitening, bit for bit
    batches = islice(data.train_dataloader(), recorder.steps)
    losses = [recipe.step(images, labels).item() for images, labels in batches]
    pairs = list(zip(recorder.losses, losses, strict=True))
    for step, (framework_loss, bare_loss) in enumerate(pairs):
        print(f"step {step:3}: framework {framework_loss:.6f}, bare loop {bare_loss:.6f}")
    largest = max(abs(a - b) for a, b in pairs)
    print(f"{len(pairs)} steps, precision={precision}: losses differ by at most {largest:.2g}")


def race(overrides: list[str], runs: int) -> None:
    """Print the mean time and accuracy of both, interleaved."""
    config = composed(overrides)
    torch.backends.cudnn.benchmark = True
    data: ImageDataModule = build(config, "data")
    contestants = {"framework": framework(config, data), "bare loop": bare_loop(config, data)}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    accuracies: dict[str, list[float]] = {name: [] for name in contestants}
    for run in range(runs + 1):
        for name, train in contestants.items():
            torch.cuda.synchronize()
            begin = time.perf_counter()
            accuracy = train(run)
            torch.cuda.synchronize()
            if run:  # the first one compiles and warms up
                seconds[name].append(time.perf_counter() - begin)
                accuracies[name].append(100 * accuracy)
    print(f"{torch.cuda.get_device_name()}, compile={config['compile']}, {runs} runs each")
    for name in contestants:
        time_text = f"{mean(seconds[name]):.3f} ± {stdev(seconds[name]):.3f} s"
        print(f"{name:10} {time_text}, {mean(accuracies[name]):.2f} ± {stdev(accuracies[name]):.2f} %")


def framework(config: dict[str, Any], data: ImageDataModule) -> Callable[[int], float]:
    """Return a function that trains with the framework's trainer; the network is compiled once."""
    module = make_module(config)

    def train(seed: int) -> float:
        restart(module.network, config, seed)
        data.seed = seed
        trainer = make_trainer(config, [])
        trainer.fit(module, data)
        trainer.test(module, data, verbose=False)
        return float(trainer.callback_metrics["test/acc"])

    return train


def bare_loop(config: dict[str, Any], data: ImageDataModule) -> Callable[[int], float]:
    """Return a function that trains with PyTorch alone, on normalized images in GPU memory."""
    device = torch.device("cuda")
    network = build(config, "model").to(device, memory_format=torch.channels_last)
    if config["compile"]:
        network.compile()
    data.setup("fit")
    data.setup("test")
    (images, labels), (test_images, test_labels) = (
        all_images(data, split, device) for split in ("train", "test")
    )
    batch_size, epochs = config["data"]["batch_size"], config["trainer"]["max_epochs"]

    def train(seed: int) -> float:
        restart(network, config, seed)
        recipe = Recipe(network, len(images) // batch_size, epochs, torch.bfloat16)
        recipe.whiten(images[:5000])
        mirrored = torch.rand(len(images), device=device) < 0.5
        for epoch in range(epochs):
            for rows in torch.randperm(len(images), device=device).split(batch_size):
                batch = shifted(images[rows])
                flips = (mirrored[rows] ^ bool(epoch % 2)).view(-1, 1, 1, 1)
                recipe.step(torch.where(flips, batch.flip(-1), batch), labels[rows])
        network.eval()
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            chunks = test_images.split(2000)
            logits = torch.cat([six_views(network, chunk) for chunk in chunks])
        return (logits.argmax(dim=1) == test_labels).float().mean().item()

    return train


class Recipe:
    """Training steps of the recipe, written out for this network.

    Args:
        network: network of class `project.modules.networks.airbench.Airbench`.
        steps_per_epoch: optimizer steps per epoch.
        epochs: number of epochs.
        precision: precision of the forward pass; bfloat16 by autocast.
    """

    def __init__(
        self, network: Any, steps_per_epoch: int, epochs: int, precision: torch.dtype = torch.float32
    ) -> None:
        self.network = network.train()
        self.precision = precision
        self.total, self.whitening_total = epochs * steps_per_epoch, 3 * steps_per_epoch
        self.done = 0
        named = dict(network.named_parameters())
        offsets = [p for name, p in named.items() if "norm" in name and name.endswith("bias")]
        self.filters = [p for name, p in named.items() if ".conv" in name]
        self.sums = [torch.zeros_like(p) for p in self.filters]
        decay, size = 0.004, 2000
        self.sgd = torch.optim.SGD(
            [
                {"params": [rates[0]] if isinstance(rates[0], Tensor) else rates[0], "lr": rates[1]}
                | {"weight_decay": decay / rates[1]}
                for rates in (
                    (network.whitening.bias, 0.053 * size),
                    (offsets, 0.053 * size),
                    (network.head.weight, 0.67 * size / network.head.in_features**2),
                )
            ],
            momentum=0.85,
            nesterov=True,
        )
        self.rates = [group["lr"] for group in self.sgd.param_groups]

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Set the first layer's filters from normalized images (N, C, H, W)."""
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1)  # N, C, H - 1, W - 1, 2, 2
        flat = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)  # patches, C * 2 * 2
        values, vectors = torch.linalg.eigh((flat.T @ flat / len(flat)).double())
        vectors = (
            vectors * (torch.linspace(1, 2, len(values), device=vectors.device).double() @ vectors).sign()
        )
        scaled = (vectors / (values + 5e-4).sqrt()).T.float()
        filters = torch.cat([scaled, -scaled]).view_as(self.network.whitening.weight)
        self.network.whitening.weight.copy_(filters)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Train on one batch; return its loss."""
        weight = self.network.head.weight
        images = images.to(weight.dtype).contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, self.precision, enabled=self.precision == torch.bfloat16):
            loss = F.cross_entropy(self.network(images), labels, label_smoothing=0.2)
        loss.backward()
        left = 1 - self.done / self.total
        lefts = [max(0.0, 1 - self.done / self.whitening_total), left, left]
        for group, rate, ratio in zip(self.sgd.param_groups, self.rates, lefts, strict=True):
            group["lr"] = rate * ratio
        self.sgd.step()
        for weight, total in zip(self.filters, self.sums, strict=True):
            self._muon(weight, total, 0.24 * left)
        self.network.zero_grad()
        self.done += 1
        return loss.detach()

    @torch.no_grad()
    def _muon(self, weight: Tensor, total: Tensor, rate: float) -> None:
        assert weight.grad is not None
        total.mul_(0.6).add_(weight.grad)
        matrix = (weight.grad + 0.6 * total).flatten(1)
        if matrix.is_cuda:
            matrix = matrix.bfloat16()
        matrix = matrix / (matrix.norm() + 1e-7)
        for _ in range(3):
            gram = matrix @ matrix.T
            matrix = 3.4445 * matrix + (-4.7750 * gram + 2.0315 * gram @ gram) @ matrix
        weight.mul_(len(weight) ** 0.5 / weight.norm())
        weight.sub_(rate * matrix.view_as(weight))


def shifted(images: Tensor) -> Tensor:
    """Shift each image (B, C, H, W) by up to 2 pixels, with reflection padding."""
    batch, _, height, width = images.shape
    windows = F.pad(images, (2,) * 4, mode="reflect").unfold(2, height, 1).unfold(3, width, 1)
    top, left = torch.randint(5, (2, batch), device=images.device)
    return windows[torch.arange(batch, device=images.device), :, top, left]


def six_views(network: nn.Module, images: Tensor) -> Tensor:
    """Return logits (B, K): one half from the image, one half from two shifts, each with its mirror image."""
    padded = F.pad(images, (1,) * 4, mode="reflect")
    height, width = images.shape[2:]
    logits = 0
    for view, weight in (
        (images, 0.25),
        (padded[:, :, :height, :width], 0.125),
        (padded[:, :, 2:, 2:], 0.125),
    ):
        for copy in (view, view.flip(-1)):
            logits = logits + weight * network(copy.contiguous(memory_format=torch.channels_last))
    return logits


def all_images(data: ImageDataModule, split: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return all normalized images of a split, and their labels."""
    images, rows = data.subset(split)
    scale = [torch.tensor(values, device=device).view(-1, 1, 1) for values in (data.mean, data.std)]
    labels = images.labels[rows.to(images.labels.device)].to(device)
    return (images.sample(rows).to(device) / 255 - scale[0]) / scale[1], labels


def restart(network: nn.Module, config: dict[str, Any], seed: int) -> None:
    """Reset a network, compiled or not, to the weights of a new network."""
    torch.manual_seed(seed)
    network.load_state_dict(build(config, "model").state_dict())


def composed(overrides: list[str]) -> dict[str, Any]:
    """Return the configuration of the training command as plain values."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolve(compose("train", overrides))


def make_module(config: dict[str, Any]) -> ImageClassifier:
    """Build the module like `project.train`."""
    torch.manual_seed(config["seed"])
    return build_task(config)


def make_trainer(config: dict[str, Any], callbacks: list[L.Callback]) -> L.Trainer:
    """Build the configured trainer without files, progress bars and logs."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return build(config, "trainer", callbacks=callbacks, **quiet)


class Losses(L.Callback):
    """Records the loss of each step and stops training early, without changing the schedule's length.

    Args:
        steps: number of steps after which training stops.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        """Record the loss; stop after the last step."""
        self.losses.append(arguments[1]["loss"].item())
        trainer.should_stop = len(self.losses) >= self.steps


if __name__ == "__main__":
    main()
