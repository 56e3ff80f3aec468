"""LightningModules that reconstruct images: autoencoder and variational autoencoder."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torchmetrics import MeanMetric, Metric

from project.datamodules.targets import describe
from project.errors import InputError
from project.figures import to_uint8
from project.modules.image_logging import is_picture_due, log_sheet
from project.modules.networks.autoencoder import LatentSample
from project.modules.optim.parameter_groups import ParameterGroups
from project.modules.optim.schedules import Schedule, constant
from project.modules.optim.training_length import TrainingLength
from project.modules.supervised import SupervisedModule
from project.runtime.bounds import Range
from project.runtime.seeding import generator

Reconstruction = Literal["mse", "bce"]
NUM_PICTURES = 16
"""Images on a contact sheet of reconstructions, and of samples."""
IMAGES_PER_ROW = 8


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the KL divergence (B,), in nats, of diagonal normal distributions from the standard normal.

    Source: Kingma and Welling 2014, appendix B. Arguments are (B, D).
    """
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=1)


class ReconstructionLoss(nn.Module):
    """Mean over images and pixels of squared error, or of binary cross-entropy of logits.

    Args:
        kind: `mse` or `bce`.
    """

    def __init__(self, kind: Reconstruction) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the scalar loss of outputs (B, C, H, W) for targets of the same shape."""
        if self.kind == "bce":
            return F.binary_cross_entropy_with_logits(outputs, targets)
        return F.mse_loss(outputs, targets)


class NegativeELBO(nn.Module):
    """Negative evidence lower bound per image (Kingma and Welling 2014, eq. 10), in nats.

    The reconstruction term is the sum over pixels of the binary cross-entropy, or of half the squared error:
    the negative log-likelihood of a normal distribution with variance 1, without its constant.

    Args:
        kind: `mse` or `bce`.
        beta: weight of the KL divergence.
    """

    def __init__(self, kind: Reconstruction, beta: float) -> None:
        super().__init__()
        self.kind = kind
        self.beta = beta

    def forward(self, outputs: LatentSample, targets: Tensor) -> Tensor:
        """Return the mean over the batch, for targets (B, C, H, W)."""
        reconstructions = outputs.reconstructions.float()
        if self.kind == "bce":
            total = F.binary_cross_entropy_with_logits(reconstructions, targets, reduction="sum")
        else:
            total = 0.5 * F.mse_loss(reconstructions, targets, reduction="sum")
        divergence = kl_divergence(outputs.mean.float(), outputs.log_variance.float())
        return total / len(targets) + self.beta * divergence.mean()


class AutoencoderModule(SupervisedModule):
    """Network trained to output its input images.

    Batches are normalized images (B, C, H, W) and labels, which are ignored. Sends contact sheets of images
    and their reconstructions to loggers with a method `log_image`.

    Args:
        network: maps images (B, C, H, W) to outputs of the same shape.
        optimizer: see `SupervisedModule`.
        scheduler: see `SupervisedModule`.
        reconstruction: `mse`: squared error of normalized images; `bce`: binary cross-entropy between the
            sigmoid of the outputs and pixels on the scale [0, 1] [mse].
        options: arguments of `SupervisedModule` for weight decay, compilation and memory format.

    Raises:
        InputError: in the first training step, the outputs do not have the shape of the images; for `bce`,
            the data module has no `mean` and `std`.
    """

    METRICS: ClassVar[dict[str, str]] = {"loss": "min"}

    supports_batched_hooks = True

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[ParameterGroups], Optimizer] = torch.optim.Adam,
        scheduler: Callable[[Optimizer, TrainingLength], Schedule] = constant,
        *,
        reconstruction: Reconstruction = "mse",
        loss: nn.Module | None = None,
        **options: Any,
    ) -> None:
        loss = ReconstructionLoss(reconstruction) if loss is None else loss
        super().__init__(network, loss, optimizer, scheduler, **options)
        self.reconstruction: Reconstruction = reconstruction

    def unpack(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W), normalized, and the targets of the reconstruction."""
        images = batch[0] if isinstance(batch, list | tuple) else batch
        if self.reconstruction == "mse":
            return images, images
        mean, std = self._pixel_scale()
        return images, (images * _per_channel(std, images) + _per_channel(mean, images)).clamp(0, 1)

    def _pixel_scale(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each channel, on the scale [0, 1]."""
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        mean, std = getattr(datamodule, "mean", None), getattr(datamodule, "std", None)
        if mean is None or std is None:
            raise InputError(
                "task.reconstruction=bce: needs pixels from 0 to 1, but the data module has no mean and std "
                "to undo the normalization; set task.reconstruction=mse"
            )
        return mean, std

    def reconstructions_of(self, outputs: Any) -> Tensor:
        """Return the tensor (B, C, H, W) of a network's outputs that reconstructs images."""
        found: Tensor = outputs
        return found

    def require_outputs(self, outputs: Any, targets: Tensor) -> None:
        fits = isinstance(outputs, Tensor) and outputs.shape == targets.shape
        if not fits or not outputs.is_floating_point():
            raise InputError(
                f"model: outputs are not reconstructions (expected floats of shape {list(targets.shape)}, "
                f"got {describe(outputs)}); set model=autoencoder, or another network that returns images"
            )

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate_and_draw(batch, batch_idx, "val")

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Update the metrics with one batch, and return the reconstructions (B, C, H, W)."""
        return self.reconstructions_of(self._evaluate_and_draw(batch, batch_idx, "test"))

    def _evaluate_and_draw(self, batch: Any, batch_idx: int, split: str) -> Any:
        loss, outputs, targets = self.compute(batch)
        self._evaluate(split, loss, outputs, targets)
        if batch_idx == 0 and is_picture_due(self):
            self._log_pictures(targets, self.reconstructions_of(outputs), split)
        return outputs

    def _log_pictures(self, targets: Tensor, outputs: Tensor, split: str) -> None:
        """Log rows of images in turn with rows of their reconstructions."""
        count = min(NUM_PICTURES, len(targets))
        pairs = [self._to_pixels(targets[:count]), self._to_pixels(outputs[:count], are_outputs=True)]
        rows = [
            part
            for pair in zip(*(part.split(IMAGES_PER_ROW) for part in pairs), strict=True)
            for part in pair
        ]
        title = "Images, and their reconstructions below"
        log_sheet(self, f"{split}/reconstructions", torch.cat(rows), title=title)

    def _to_pixels(self, images: Tensor, *, are_outputs: bool = False) -> Tensor:
        """Return uint8 pixels of targets, or of the network's outputs."""
        if self.reconstruction == "bce":
            return ((images.sigmoid() if are_outputs else images) * 255).round().to("cpu", torch.uint8)
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        channels = images.shape[1]
        mean = getattr(datamodule, "mean", None) or [0.5] * channels
        std = getattr(datamodule, "std", None) or [0.25] * channels
        return torch.from_numpy(to_uint8(images.float().cpu(), mean, std))


class VariationalAutoencoderModule(AutoencoderModule):
    """Variational autoencoder (Kingma and Welling 2014), with a weight of the KL divergence.

    The loss is the negative evidence lower bound per image, in nats. Training draws one sample of the latent
    variables per image from torch's global generator. Evaluation draws the same noise for each batch, so that
    epochs are comparable. Logs `val/kl` and `test/kl`, the KL divergence per image in nats. Sends images
    decoded from the prior to loggers after the test, if the network has an attribute `decoder`.

    Args:
        network: maps images (B, C, H, W) and optional noise (B, D) to a `LatentSample`; has `latent_dim`, D.
        optimizer: see `SupervisedModule`.
        scheduler: see `SupervisedModule`.
        reconstruction: see `AutoencoderModule` [bce].
        beta: weight of the KL divergence, as in Higgins et al. 2017 [1].
        options: see `AutoencoderModule`.

    Raises:
        InputError: in the first training step, the network does not return a `LatentSample`.
    """

    supports_batched_hooks = True

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[ParameterGroups], Optimizer] = torch.optim.Adam,
        scheduler: Callable[[Optimizer, TrainingLength], Schedule] = constant,
        *,
        reconstruction: Reconstruction = "bce",
        beta: Annotated[float, Range(0)] = 1.0,
        **options: Any,
    ) -> None:
        loss = NegativeELBO(reconstruction, beta)
        super().__init__(network, optimizer, scheduler, reconstruction=reconstruction, loss=loss, **options)

    def forward(self, inputs: Tensor) -> Any:
        """Map images (B, C, H, W) to a `LatentSample`."""
        latent_dim: Any = getattr(self.network, "latent_dim", None)
        if self.training or latent_dim is None:
            return super().forward(inputs)
        inputs = inputs.contiguous(memory_format=self.memory_format)
        draws = generator(0, device=inputs.device)
        noise = torch.randn(
            (len(inputs), latent_dim), generator=draws, device=inputs.device, dtype=inputs.dtype
        )
        return self.network(inputs, noise)

    def reconstructions_of(self, outputs: LatentSample) -> Tensor:
        return outputs.reconstructions

    def require_outputs(self, outputs: Any, targets: Tensor) -> None:
        if not isinstance(outputs, LatentSample):
            raise InputError(
                f"model: outputs are not those of a variational autoencoder (expected a LatentSample, got "
                f"{describe(outputs)}); set model=vae, or task=autoencoder for another autoencoder"
            )
        super().require_outputs(outputs.reconstructions, targets)

    def build_metrics(self) -> dict[str, Metric]:
        return {"kl": MeanMetric()}

    def metric_inputs(self, outputs: LatentSample, targets: Any) -> tuple[Tensor, float]:
        """Return the KL divergences (B,) and their weight."""
        return kl_divergence(outputs.mean.float(), outputs.log_variance.float()), 1.0

    def on_test_end(self) -> None:
        decoder = getattr(self.network, "decoder", None)
        if decoder is not None and is_picture_due(self):
            latent_dim: Any = self.network.latent_dim
            draws = generator(0, device=self.device)
            latent = torch.randn((NUM_PICTURES, latent_dim), generator=draws, device=self.device)
            with torch.inference_mode(), self.trainer.precision_plugin.forward_context():
                samples = decoder(self.trainer.precision_plugin.convert_input(latent))
            pixels = self._to_pixels(samples.float(), are_outputs=True)
            log_sheet(self, "test/samples", pixels, title="Samples of the prior, decoded")


def _per_channel(values: list[float], images: Tensor) -> Tensor:
    return torch.tensor(values, device=images.device, dtype=images.dtype).view(-1, 1, 1)
