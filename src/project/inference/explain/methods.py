"""Saliency methods for networks that map images to logits, computed by Captum."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from project.errors import InputError
from project.inference.explain.attention import attention_rollout
from project.inference.explain.feature_maps import dissect
from project.inference.explain.options import Baseline, Method
from project.runtime.extras import import_extra
from project.runtime.text import did_you_mean

EVALUATIONS_PER_PASS = 256
"""Changed copies of images in one forward pass."""


@dataclass(frozen=True)
class Settings:
    """Settings of the methods.

    Args:
        layer: name of the module whose feature map Grad-CAM uses [the deepest].
        baseline: image of missing evidence, for integrated gradients and occlusion: `black`, or `mean` (the
            mean color of the training images).
        num_steps: steps of the integral of integrated gradients.
        window: side of the occluding square, pixels [a fifth of the shorter side].
    """

    layer: str | None = None
    baseline: Baseline = "black"
    num_steps: int = 50
    window: int | None = None


class Attribution:
    """A saliency method for one network.

    Args:
        network: maps images (B, C, H, W) to logits (B, K); in evaluation mode.
        example: an input (1, C, H, W).
        method: see `options.Method`.
        settings: settings of the methods.
        black: (C, 1, 1) network input of a black pixel [zero].

    Raises:
        InputError: the method does not fit the network, there is no such layer, or Captum is not installed.
    """

    def __init__(
        self,
        network: nn.Module,
        example: Tensor,
        method: Method = "auto",
        settings: Settings | None = None,
        black: Tensor | None = None,
    ) -> None:
        self.network = network
        self.settings = settings or Settings()
        self.black = torch.zeros(example.shape[1], 1, 1) if black is None else black
        self._anatomy = dissect(network, example)
        self._rejected = self._find_rejected(example)
        fitting = [name for name in METHODS if name not in self._rejected]
        self.method = self._choose(fitting) if method == "auto" else method
        if (problem := self._rejected.get(self.method)) is not None:
            raise InputError(
                f"method={method}: {problem} (expected one of {', '.join(fitting)}); give method={fitting[0]}"
            )
        self.layer = self._find_layer(example) if self.method == "grad_cam" else None
        if self.method != "attention_rollout":
            self._attr = import_extra("captum.attr", f"method={self.method}", "explain")

    def _choose(self, fitting: list[str]) -> str:
        """Return the method for `auto`: Grad-CAM only for heads that it assumes."""
        has_places = "grad_cam" in fitting and self.settings.layer is None and not self._anatomy.is_pooled
        return "occlusion" if has_places else fitting[0]

    def _find_rejected(self, example: Tensor) -> dict[str, str]:
        """Return, for each method that does not fit the network, the reason."""
        name = type(getattr(self.network, "network", self.network)).__name__
        rejected = {}
        if self._anatomy.patches is None:
            rejected["attention_rollout"] = f"{name} has no attention layers after a patch embedding"
        else:
            try:
                attention_rollout(self.network, self._anatomy, example)
            except ValueError as error:
                rejected["attention_rollout"] = f"of {name}, {error}"
        if not self._anatomy.maps and self.settings.layer is None:
            rejected["grad_cam"] = f"{name} has no feature map of a convolution"
        return rejected

    def _find_layer(self, example: Tensor) -> Any:
        """Return the feature map that `layer` names, else the deepest."""
        wanted = self.settings.layer
        if wanted is None:
            return self._anatomy.deepest
        maps = {one.name: one for one in self._anatomy.maps}
        if wanted not in maps:
            known = ", ".join(maps) if len(maps) <= 12 else did_you_mean(wanted, maps)
            raise InputError(f"layer={wanted}: no layer with a feature map; choose from {known or 'none'}")
        return maps[wanted]

    @property
    def caveat(self) -> str:
        """A weakness of the method for this network, on one line; empty if there is none."""
        if self.method != "grad_cam" or self._anatomy.is_pooled:
            return ""
        return (
            "Grad-CAM averages gradients over places, but this network's head has weights for each place; "
            "method=occlusion is more exact"
        )

    def attribute(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return attributions (B, H, W) float32: positive where pixels are evidence for the target class.

        Args:
            images: network inputs (B, C, H, W), normalized.
            targets: classes (B,).
        """
        compute = {
            "grad_cam": self._grad_cam,
            "integrated_gradients": self._integrated_gradients,
            "occlusion": self._occlusion,
            "attention_rollout": self._attention_rollout,
        }[self.method]
        # cuDNN differentiates recurrent layers in training mode only.
        has_recurrence = any(isinstance(module, nn.RNNBase) for module in self.network.modules())
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not has_recurrence):
            return compute(images, targets).detach().float()

    def _grad_cam(self, images: Tensor, targets: Tensor) -> Tensor:
        """Selvaraju et al. 2017, eq. 1 and 2, before the ReLU: negative is evidence against the class."""
        assert self.layer is not None
        grad_cam = self._attr.LayerGradCam(self.network, self.network.get_submodule(self.layer.name))
        # Frozen layers have gradients with respect to their outputs only if the images have them.
        cells = grad_cam.attribute(images.requires_grad_(), targets)  # B, 1, h, w
        return self.layer.place(cells[:, 0].detach(), _size(images))

    def _integrated_gradients(self, images: Tensor, targets: Tensor) -> Tensor:
        """Sundararajan et al. 2017, eq. 1, summed over channels: the sum is f(image) − f(baseline)."""
        integrated = self._attr.IntegratedGradients(self.network)
        found = integrated.attribute(
            images,
            self._baseline(images),
            targets,
            n_steps=self.settings.num_steps,
            internal_batch_size=max(EVALUATIONS_PER_PASS, len(images)),
        )
        return found.sum(dim=1)

    def _occlusion(self, images: Tensor, targets: Tensor) -> Tensor:
        """Zeiler & Fergus 2014, sec. 4.2: decrease of the logit, mean over the squares that cover a pixel."""
        side = self.settings.window or max(1, round(min(_size(images)) / 5))
        window = [min(side, length) for length in _size(images)]
        step = max(1, side // 3)
        with torch.no_grad():
            found = self._attr.Occlusion(self.network).attribute(
                images,
                (images.shape[1], *window),
                (images.shape[1], step, step),
                self._baseline(images),
                targets,
                perturbations_per_eval=max(1, EVALUATIONS_PER_PASS // len(images)),
            )
        return found[:, 0]  # equal in all channels, which are occluded together

    def _attention_rollout(self, images: Tensor, targets: Tensor) -> Tensor:
        """Shares of attention above that of the least attended patch."""
        assert self._anatomy.patches is not None
        shares = attention_rollout(self.network, self._anatomy, images)
        return self._anatomy.patches.place(shares - shares.amin((1, 2), keepdim=True), _size(images))

    def _baseline(self, images: Tensor) -> Tensor:
        if self.settings.baseline == "mean":
            return torch.zeros_like(images[:1])
        return self.black.to(images).expand(1, *images.shape[1:])


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]


METHODS = ("attention_rollout", "grad_cam", "integrated_gradients", "occlusion")
"""Methods in the order in which `auto` tries them."""


def to_maps(attributions: Tensor) -> Tensor:
    """Scale attributions (N, H, W) to maps in [0, 1]: negative values become 0, the largest value 1.

    The map of an image without any positive value is 0.
    """
    positive = attributions.clamp(min=0)
    largest = positive.amax((1, 2), keepdim=True)
    return torch.where(largest > 0, positive / largest.clamp(min=torch.finfo(positive.dtype).tiny), 0.0)
