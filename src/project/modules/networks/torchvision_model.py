"""Any classification network of torchvision, from scratch or pretrained."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from project.errors import InputError, summarize
from project.modules.networks.pretrained_weights import load_body
from project.runtime.bounds import Range


class TorchvisionModel(nn.Module):
    """A torchvision classifier with a head of `num_classes` logits.

    Images of one channel are repeated to the three that these networks expect.

    Args:
        input_shape: (C, H, W) of one image; C is 1 or 3.
        num_classes: number of logits.
        name: as in torchvision, e.g. `resnet18`, `convnext_tiny`, `vit_b_16`.
        weights: null for random ones, the name of pretrained ones (`DEFAULT`, `IMAGENET1K_V1`), or
            a file with a state_dict of this network, for any number of classes; a run's checkpoint too.
        freeze: train the new head alone; everything else keeps its weights and statistics.
        resize: side in pixels to which a batch is scaled before the network, e.g. 224.

    Raises:
        InputError: unknown name or weights; weights that cannot be fetched or read; an image that
            the network cannot take.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        name: str = "resnet18",
        weights: str | None = None,
        freeze: bool = False,
        resize: Annotated[int, Range(1)] | None = None,
    ) -> None:
        super().__init__()
        if name not in (known := models.list_models(module=models)):
            nearest = get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"one of {', '.join(known)}"
            raise InputError(f"model.name={name}: no classification model of torchvision; {hint}")
        if freeze and weights is None:
            raise InputError("model.freeze=true: needs pretrained weights (model.weights=DEFAULT)")
        self.resize = resize
        self.freeze = freeze
        side = resize or input_shape[1]
        self.network = _build(name, side, weights)
        self.head_name = _replace_head(self.network, num_classes)
        if freeze:
            for parameter in self._frozen():
                parameter.requires_grad_(False)
        try:
            with torch.no_grad():
                self.eval()(torch.zeros(1, *input_shape))
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"model.name={name}: cannot take images of {list(input_shape)} ({summarize(error)}); "
                "try model.resize=224, or 299 for inception_v3"
            ) from error
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        if self.resize is not None:
            images = F.interpolate(
                images, size=(self.resize, self.resize), mode="bilinear", antialias=True, align_corners=False
            )
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)  # B, 3, H, W
        return self.network(images)

    def train(self, mode: bool = True) -> "TorchvisionModel":
        """Set training mode; a frozen body stays in evaluation mode, so that its statistics stay."""
        super().train(mode)
        if mode and self.freeze:
            self.network.eval()
            self.network.get_submodule(self.head_name).train()
        return self

    def _frozen(self) -> Iterator[nn.Parameter]:
        for name, parameter in self.network.named_parameters():
            if not name.startswith(f"{self.head_name}."):
                yield parameter


def _build(name: str, side: int, weights: str | None) -> nn.Module:
    """Build the network as torchvision made it (1,000 classes), with its weights loaded."""
    options: dict[str, object] = {}
    if name.startswith("vit_"):
        options["image_size"] = side
    if name.startswith("maxvit"):
        options["input_size"] = (side, side)
    if name in ("googlenet", "inception_v3"):  # their auxiliary heads return a tuple while training
        options |= {"aux_logits": False, "init_weights": True} if weights is None else {}
    if weights is None:
        return models.get_model(name, weights=None, **options)
    if "://" in weights or (file := Path(weights)).suffix or file.exists():
        network = models.get_model(name, weights=None, **options)
        load_body(network, weights, find_head(network)[0], name)
        return network
    known = models.get_model_weights(name)
    if weights != "DEFAULT" and weights not in known.__members__:
        allowed = ", ".join(["DEFAULT", *known.__members__])
        raise InputError(f"model.weights={weights}: choose from {allowed}, null, or a file")
    try:
        network = models.get_model(name, weights=weights, progress=False, **options)
    except (URLError, OSError) as error:
        url = known[weights].url
        raise InputError(
            f"model.weights={weights}: could not fetch {url} ({error}); "
            f"put the file at {_cached(url)}, give its path as model.weights=FILE, or set model.weights=null"
        ) from error
    except ValueError as error:
        raise InputError(f"model.weights={weights}: {error}") from error
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(
            f"model.weights={weights}: {_cached(known[weights].url)} is damaged or no file of weights "
            f"({summarize(error)}); remove it, and it is fetched anew"
        ) from error
    if hasattr(network, "aux_logits"):
        network.aux_logits = False
        for auxiliary in ("AuxLogits", "aux1", "aux2"):
            if hasattr(network, auxiliary):
                setattr(network, auxiliary, None)
    return network


def _cached(url: str) -> Path:
    """Where torch keeps what it has downloaded."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def find_head(network: nn.Module) -> tuple[str, nn.Module]:
    """The last linear (or 1×1 convolution) layer of a network as torchvision made it, and its name."""
    for name, module in reversed(list(network.named_modules())):
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.out_channels == 1000):
            return name, module
    raise AssertionError("every classification model of torchvision ends in such a layer")


def _replace_head(network: nn.Module, num_classes: int) -> str:
    """Put a fresh layer in the place of the head; return its name."""
    name, module = find_head(network)
    if isinstance(module, nn.Linear):
        head: nn.Module = nn.Linear(module.in_features, num_classes)
    else:
        assert isinstance(module, nn.Conv2d)
        head = nn.Conv2d(module.in_channels, num_classes, kernel_size=1)
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, head)
    return name
