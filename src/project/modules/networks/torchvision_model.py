"""Classification networks of torchvision with random, pretrained or saved weights."""

import re
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, ClassVar
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision import models

from project.errors import InputError, summarize
from project.modules.networks.pretrained import (
    PretrainedNetwork,
    find_head_layer,
    is_file_name,
    load_backbone,
    refuse_freezing_random_weights,
    unknown_name_error,
)
from project.runtime.bounds import Range

DENSENET_DOT = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")
"""Dot in parameter names of torchvision's DenseNet files, which its networks do not have."""


class TorchvisionModel(PretrainedNetwork):
    """Classification network of torchvision with a new head.

    Images with one channel are repeated to three channels.

    Args:
        input_shape: (C, H, W) of one image; C is 1 or 3.
        num_classes: number of logits.
        name: torchvision's name, e.g. `resnet18`, `convnext_tiny`, `vit_b_16`.
        weights: None: random weights; the name of pretrained weights (`DEFAULT`, `IMAGENET1K_V1`); or a file
            with a state_dict of this network with any number of classes, such as a run's checkpoint.
        freeze: if True, train only the new head; the backbone keeps its weights and batch norm statistics.
        resize: side to which images are resized on the device, pixels, e.g. 224; None: do not resize.

    Raises:
        InputError: the name or the weights are unknown, the weights cannot be downloaded or read, or the
            network does not accept the images.
    """

    RESIZE_HINT: ClassVar = "try model.resize=224, or 299 for inception_v3"

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        name: str = "resnet18",
        weights: str | None = None,
        freeze: bool = False,
        resize: Annotated[int, Range(1)] | None = None,
    ) -> None:
        if name not in (known := models.list_models(module=models)):
            raise unknown_name_error(name, "torchvision", known)
        refuse_freezing_random_weights(freeze, weights)
        network = _build_network(name, resize or input_shape[1], weights)
        super().__init__(
            network,
            [_replace_head(network, num_classes)],
            input_shape=input_shape,
            channels=3,
            freeze=freeze,
            resize=resize,
            key=f"model.name={name}",
        )


def _build_network(name: str, side: int, weights: str | None) -> nn.Module:
    """Return torchvision's network with its original head (1,000 classes), with weights loaded."""
    options: dict[str, object] = {}
    if name.startswith("vit_"):
        options["image_size"] = side
    if name.startswith("maxvit"):
        options["input_size"] = (side, side)
    if name in ("googlenet", "inception_v3"):  # their auxiliary heads return a tuple in training
        options |= {"aux_logits": False, "init_weights": True} if weights is None else {}
    if weights is None:
        return models.get_model(name, weights=None, **options)
    if is_file_name(weights):
        network = models.get_model(name, weights=None, **options)
        load_backbone(network, weights, [find_head_layer(network)[0]], name, _convert_entry)
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
            f"model.weights={weights}: cannot download {url} ({error}); "
            f"put the file at {_cached_file(url)}, set model.weights to its path, or set model.weights=null"
        ) from error
    except ValueError as error:
        raise InputError(f"model.weights={weights}: {error}") from error
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(
            f"model.weights={weights}: {_cached_file(known[weights].url)} is damaged or not a file of "
            f"weights ({summarize(error)}); remove it to download it again"
        ) from error
    if hasattr(network, "aux_logits"):
        network.aux_logits = False
        for auxiliary in ("AuxLogits", "aux1", "aux2"):
            if hasattr(network, auxiliary):
                setattr(network, auxiliary, None)
    return network


def _convert_entry(name: str, value: Tensor) -> tuple[str, Tensor]:
    return DENSENET_DOT.sub(r"\1", name), value


def _cached_file(url: str) -> Path:
    """Return the path at which torch caches the download of a URL."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def _replace_head(network: nn.Module, num_classes: int) -> str:
    """Replace the head with a new layer, and return its name."""
    name, module = find_head_layer(network)
    if isinstance(module, nn.Linear):
        head: nn.Module = nn.Linear(module.in_features, num_classes)
    else:
        assert isinstance(module, nn.Conv2d)
        head = nn.Conv2d(module.in_channels, num_classes, kernel_size=1)
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, head)
    return name
