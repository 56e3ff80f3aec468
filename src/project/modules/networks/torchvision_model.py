"""Classification networks of torchvision with random, pretrained or saved weights."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from project.errors import InputError, summarize
from project.runtime.bounds import Range
from project.runtime.text import nearest_names

STATE_DICT_KEYS = ("state_dict", "model")
"""Keys under which training scripts save the state_dict; this package uses the first."""
PREFIXES = ("", "network.network.", "network.", "module.", "model.")
"""Prefixes of parameter names in checkpoints of this package and of wrapped networks."""
AUXILIARY_HEADS = ("AuxLogits.", "aux1.", "aux2.")
"""Heads of Inception networks that are used only in training from scratch."""
DENSENET_DOT = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")
"""Dot in parameter names of torchvision's DenseNet files, which its networks do not have."""


class TorchvisionModel(nn.Module):
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
            nearest = nearest_names(name, known)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"one of {', '.join(known)}"
            raise InputError(f"model.name={name}: not a classification model of torchvision; {hint}")
        if freeze and weights is None:
            raise InputError("model.freeze=true: needs pretrained weights (model.weights=DEFAULT)")
        self.resize = resize
        self.freeze = freeze
        self.network = _build_network(name, resize or input_shape[1], weights)
        self.head_name = _replace_head(self.network, num_classes)
        if freeze:
            for parameter_name, parameter in self.network.named_parameters():
                parameter.requires_grad_(parameter_name.startswith(f"{self.head_name}."))
        try:
            with torch.no_grad():
                self.eval()(torch.zeros(1, *input_shape))
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"model.name={name}: does not accept images of {list(input_shape)} ({summarize(error)}); "
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
        """Set training mode; a frozen backbone stays in evaluation mode to keep its statistics."""
        super().train(mode)
        if mode and self.freeze:
            self.network.eval()
            self.network.get_submodule(self.head_name).train()
        return self


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
    if "://" in weights or (file := Path(weights)).suffix or file.exists():
        network = models.get_model(name, weights=None, **options)
        load_backbone(network, weights, find_head_layer(network)[0], name)
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


def _cached_file(url: str) -> Path:
    """Return the path at which torch caches the download of a URL."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def find_head_layer(network: nn.Module) -> tuple[str, nn.Module]:
    """Return name and module of the last linear layer, or of SqueezeNet's final 1×1 convolution."""
    for name, module in reversed(list(network.named_modules())):
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.out_channels == 1000):
            return name, module
    raise AssertionError("every classification model of torchvision ends in such a layer")


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


def load_backbone(network: nn.Module, file: str, head: str, name: str) -> None:
    """Load all weights except the head's from a file with a state_dict or a checkpoint.

    Args:
        network: network of torchvision.
        file: path of the file; its number of classes may differ.
        head: name of the head layer in `network`.
        name: torchvision's name of the network, for error messages.

    Raises:
        InputError: the file does not exist, or its weights do not fit the network.
    """
    saved = _read_state_dict(file)
    own = network.state_dict()
    body = {entry for entry in own if not entry.startswith(f"{head}.")}
    candidates = [
        {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
        for prefix in PREFIXES
    ]
    best = max(candidates, key=lambda entries: len(body & set(entries)))
    given = {key: value for key, value in best.items() if not key.startswith((f"{head}.", *AUXILIARY_HEADS))}
    # Old files have no `num_batches_tracked`.
    missing = [key for key in own if key in body - set(given) and not key.endswith(".num_batches_tracked")]
    unknown = [key for key in given if key not in body]
    misshaped = [key for key in given if key in body and given[key].shape != own[key].shape]
    problems = [*_summarize_entries("lacks", missing), *_summarize_entries("has unknown", unknown)]
    for problem in _summarize_entries("has another shape of", misshaped):
        shapes = f"{list(given[misshaped[0]].shape)} for {list(own[misshaped[0]].shape)}"
        problems.append(f"{problem}: {shapes}")
    if problems:
        raise InputError(
            f"model.weights={file}: not the weights of model.name={name}; the file {', '.join(problems)}; "
            "set model.name and model.resize to those of the saved network"
        )
    network.load_state_dict(given, strict=False)


def _read_state_dict(file: str) -> Mapping[str, Tensor]:
    if "://" in file:
        raise InputError(f"model.weights={file}: is a URL; download the file first, and set its path")
    try:
        saved: Any = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(
            f"model.weights={file}: no such file; give a file with a state_dict, DEFAULT, or null"
        ) from error
    except IsADirectoryError as error:
        raise InputError(f"model.weights={file}: a folder; name a file in it") from error
    except Exception as error:  # torch.load raises exceptions of many types for damaged files
        raise InputError(
            f"model.weights={file}: cannot be read as a state_dict ({summarize(error)})"
        ) from error
    for key in STATE_DICT_KEYS:
        if isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping):
            saved = saved[key]
            break
    if not isinstance(saved, Mapping) or not any(isinstance(value, Tensor) for value in saved.values()):
        raise InputError(
            f"model.weights={file}: holds no state_dict; save one with torch.save(network.state_dict(), FILE)"
        )
    tensors = {str(key): value for key, value in saved.items() if isinstance(value, Tensor)}
    return {DENSENET_DOT.sub(r"\1", key): value for key, value in tensors.items()}


def _summarize_entries(verb: str, entries: Sequence[str]) -> Iterator[str]:
    if entries:
        more = f" and {len(entries) - 1:,} more" if len(entries) > 1 else ""
        yield f"{verb} {entries[0]}{more}"
