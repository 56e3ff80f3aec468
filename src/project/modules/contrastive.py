"""LightningModule for contrastive learning without labels: SimCLR, with probes of the features."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from project.datamodules.image_base import ImageDataModule
from project.datamodules.targets import describe
from project.errors import InputError
from project.modules.optim.parameter_groups import ParameterGroups
from project.modules.optim.schedules import Schedule, constant
from project.modules.optim.training_length import TrainingLength
from project.modules.probes import knn_predictions, linear_predictions
from project.modules.supervised import InitializedFromImages, SupervisedModule
from project.modules.views import RandomViews
from project.runtime.bounds import Range
from project.runtime.seeding import generator


class NTXent(nn.Module):
    """Normalized temperature-scaled cross-entropy (Chen et al. 2020, arXiv 2002.05709, eq. 1).

    Under DDP, the negatives of an image are those of its own rank.

    Args:
        temperature: divisor of the cosine similarities.
    """

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, projections: Tensor, targets: Any = None) -> Tensor:
        """Return the mean over all views of projections (2B, D).

        Rows i and i + B are the two views of image i; `targets` are not used.
        """
        directions = F.normalize(projections.float(), dim=1)
        similarities = directions @ directions.T / self.temperature  # 2B, 2B
        similarities.fill_diagonal_(-torch.inf)
        partners = torch.arange(len(directions), device=directions.device).roll(len(directions) // 2)
        return F.cross_entropy(similarities, partners)


class ProjectedBackbone(nn.Module):
    """Backbone without its classification layer, followed by a projection head of two linear layers.

    Args:
        network: classifier; its last linear layer is removed.
        projection_dim: outputs of the projection head.

    Raises:
        InputError: the network has no linear layer.
    """

    def __init__(self, network: nn.Module, projection_dim: int) -> None:
        super().__init__()
        heads = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
        if not heads or not heads[-1]:
            raise InputError(
                f"model: {type(network).__name__} has no linear layer to remove (expected a classifier that "
                "ends with one); choose another model, such as model=resnet"
            )
        parent = network.get_submodule(heads[-1].rpartition(".")[0])
        head: Any = network.get_submodule(heads[-1])
        setattr(parent, heads[-1].rpartition(".")[2], nn.Identity())
        self.backbone = network
        self.projection = nn.Sequential(
            nn.Linear(head.in_features, head.in_features),
            nn.ReLU(),
            nn.Linear(head.in_features, projection_dim),
        )
        if isinstance(network, InitializedFromImages):
            self.initialize = network.initialize

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to projections (B, projection_dim)."""
        projections: Tensor = self.projection(self.backbone(images))
        return projections


class ContrastiveModule(SupervisedModule):
    """SimCLR: a backbone trained to give two views of an image similar projections (Chen et al. 2020).

    Batches are normalized images (B, C, H, W) and labels, which training ignores. Views are drawn from
    torch's global generator in training; in evaluation, all batches get the same draws.

    Each validation and the test measure `knn_acc`: accuracy of k nearest neighbors by cosine similarity of
    the backbone's features, with training images as neighbors. `val/best_linear_acc` and `test/linear_acc`,
    measured after training, are the accuracy of logistic regression on these features.
    `trainer.check_val_every_n_epoch` sets the epochs between probes.

    Args:
        network: classifier (B, C, H, W) → (B, K) that ends with a linear layer, which is removed.
        optimizer: see `SupervisedModule`.
        scheduler: see `SupervisedModule`.
        temperature: see `NTXent` [0.5].
        projection_dim: outputs of the projection head [64].
        crop_scale: see `RandomViews` [0.2].
        flip_prob: see `RandomViews` [0.5].
        color_jitter: see `RandomViews` [0.5].
        grayscale_prob: see `RandomViews` [0.2].
        num_neighbors: neighbors that vote, k [20].
        probe_images: maximum number of training images with which the probes are fitted [10000].
        options: arguments of `SupervisedModule` for weight decay, compilation and memory format.

    Raises:
        InputError: the network has no linear layer; the data module is no `ImageDataModule`.
    """

    METRICS: ClassVar[dict[str, str]] = {"knn_acc": "max", "loss": "min"}

    supports_batched_hooks = True

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[ParameterGroups], Optimizer] = torch.optim.Adam,
        scheduler: Callable[[Optimizer, TrainingLength], Schedule] = constant,
        *,
        temperature: Annotated[float, Range(above=0)] = 0.5,
        projection_dim: Annotated[int, Range(1)] = 64,
        crop_scale: Annotated[float, Range(above=0, high=1)] = 0.2,
        flip_prob: Annotated[float, Range(0, 1)] = 0.5,
        color_jitter: Annotated[float, Range(0, 1.25)] = 0.5,
        grayscale_prob: Annotated[float, Range(0, 1)] = 0.2,
        num_neighbors: Annotated[int, Range(1)] = 20,
        probe_images: Annotated[int, Range(1)] = 10_000,
        **options: Any,
    ) -> None:
        projected = ProjectedBackbone(network, projection_dim)
        loss = NTXent(temperature)
        super().__init__(projected, loss, optimizer, scheduler, **options)
        self.views = RandomViews(crop_scale, flip_prob, color_jitter, grayscale_prob)
        self.num_neighbors = num_neighbors
        self.probe_images = probe_images

    def setup(self, stage: str) -> None:
        self._data()
        super().setup(stage)

    def _data(self) -> ImageDataModule:
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(datamodule, ImageDataModule):
            raise InputError(
                "data: the probes need labeled training images (expected an ImageDataModule, got "
                f"{type(datamodule).__name__}); choose a data set of this package, or derive yours from it"
            )
        return datamodule

    def unpack(self, batch: Any) -> tuple[Tensor, Any]:
        """Return two views of each image, (2B, C, H, W), and the labels (B,)."""
        images, labels = batch
        data = self._data()
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
        draws = None if self.training else generator(0, device=images.device)
        pixels = (images * std + mean).clamp(0, 1)
        views = torch.cat([self.views(pixels, draws), self.views(pixels, draws)])
        return (views - mean) / std, labels

    def require_outputs(self, outputs: Any, targets: Any) -> None:
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != 2 * len(targets):
            raise InputError(
                f"model: outputs are not projections (expected one row per view, got {describe(outputs)}); "
                "choose a network that returns one vector per image"
            )

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Update the loss with one batch."""
        self.eval_metrics.append(*self.compute(batch))

    def read_metrics(self, split: str) -> dict[str, float]:
        """Return the accuracy of the probes on a split; each rank measures all images."""
        bank, bank_labels = self._features("train", self.probe_images)
        queries, labels = self._features(split)
        sets = (bank, bank_labels, queries, self._data().num_classes)
        found = {"knn_acc": knn_predictions(*sets, k=self.num_neighbors)}
        if self.trainer.state.fn != "fit":
            found["linear_acc"] = linear_predictions(*sets)
        return {name: float((classes == labels).float().mean()) for name, classes in found.items()}

    @torch.no_grad()
    def _features(self, split: Any, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the backbone's features (N, D) and labels (N,) of at most `limit` evenly spaced images."""
        data, precision = self._data(), self.trainer.precision_plugin
        images, rows = data.subset(split)
        count = min(len(rows), limit or len(rows))
        chosen = torch.linspace(0, len(rows) - 1, count, dtype=torch.float64).long()
        mean, std = (
            torch.tensor(values, device=self.device).view(-1, 1, 1) for values in (data.mean, data.std)
        )
        parts = []
        for positions in chosen.split(data.eval_batch_size):
            pixels = data.pixels(split, positions).to(self.device)
            inputs = precision.convert_input((pixels / 255 - mean) / std)
            inputs = inputs.contiguous(memory_format=self.memory_format)
            with precision.forward_context():
                backbone: Any = self.network.backbone
                parts.append(backbone(inputs).float())
        return torch.cat(parts), images.labels[rows[chosen].to(images.labels.device)].to(self.device)
