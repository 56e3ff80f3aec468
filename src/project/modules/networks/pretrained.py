"""Networks of other libraries with a new head, and weights from files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from project.errors import InputError, summarize
from project.runtime.extras import import_extra
from project.runtime.text import nearest_names

STATE_DICT_KEYS = ("state_dict", "model")
"""Keys under which training scripts save the state_dict; this package uses the first."""
PREFIXES = ("", "network.network.", "network.", "module.", "model.")
"""Prefixes of parameter names in checkpoints of this package and of wrapped networks."""
AUXILIARY_HEADS = ("AuxLogits.", "aux1.", "aux2.")
"""Heads of Inception networks that are used only in training from scratch."""


class PretrainedNetwork(nn.Module):
    """Base class of networks that another library builds.

    Args:
        network: maps images (B, channels, H, W) to logits (B, num_classes).
        head_names: names of the head's layers in `network`.
        input_shape: (C, H, W) of one image.
        channels: channels that `network` takes; images with one channel are repeated.
        freeze: if True, train only the head; the backbone keeps its weights and batch norm statistics.
        resize: side to which images are resized on the device [pixels]; None: do not resize.
        key: key and value that select the network, for messages.

    Raises:
        InputError: the network does not accept the images.
    """

    RESIZE_HINT: ClassVar = "try model.resize=224"

    def __init__(
        self,
        network: nn.Module,
        head_names: Sequence[str],
        *,
        input_shape: Sequence[int],
        channels: int,
        freeze: bool,
        resize: int | None,
        key: str,
    ) -> None:
        super().__init__()
        self.network = network
        self.head_names = tuple(head_names)
        self.channels = channels
        self.freeze = freeze
        self.resize = resize
        if freeze:
            heads = tuple(f"{name}." for name in head_names)
            for parameter_name, parameter in network.named_parameters():
                parameter.requires_grad_(parameter_name.startswith(heads))
        try:
            with torch.no_grad():
                self.eval()(torch.zeros(1, *input_shape))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise InputError(
                f"{key}: does not accept images of {list(input_shape)} ({summarize(error)}); "
                f"{self.RESIZE_HINT}"
            ) from error
        self.train()

    def logits(self, images: Tensor) -> Tensor:
        """Map images (B, channels, H, W) of the network's size to logits (B, num_classes)."""
        return self.network(images)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        if self.resize is not None:
            images = F.interpolate(
                images, size=(self.resize, self.resize), mode="bilinear", antialias=True, align_corners=False
            )
        if images.shape[1] == 1:
            images = images.expand(-1, self.channels, -1, -1)
        return self.logits(images)

    def train(self, mode: bool = True) -> "PretrainedNetwork":
        """Set training mode; a frozen backbone stays in evaluation mode to keep its statistics."""
        super().train(mode)
        if mode and self.freeze:
            self.network.eval()
            for name in self.head_names:
                self.network.get_submodule(name).train()
        return self


def refuse_freezing_random_weights(freeze: bool, weights: str | None) -> None:
    """Refuse to freeze a backbone with random weights.

    Raises:
        InputError: `freeze` is set without `weights`.
    """
    if freeze and weights is None:
        raise InputError("model.freeze=true: needs pretrained weights (model.weights=DEFAULT)")


def unknown_name_error(name: str, library: str, known: Sequence[str]) -> InputError:
    """Return an error for an unknown network, with the nearest names or all names if they are few."""
    if nearest := nearest_names(name, known):
        hint = f"did you mean {' or '.join(nearest)}?"
    else:
        hint = f"one of {', '.join(known)}" if len(known) < 200 else f"one of its {len(known):,} models"
    return InputError(f"model.name={name}: not a classification model of {library}; {hint}")


def is_file_name(weights: str) -> bool:
    """Return True if `model.weights` is a file or a URL, not a name of pretrained weights."""
    return "://" in weights or bool((file := Path(weights)).suffix) or file.exists()


def find_head_layer(network: nn.Module) -> tuple[str, nn.Module]:
    """Return name and module of the last linear layer, or of SqueezeNet's final 1×1 convolution."""
    for name, module in reversed(list(network.named_modules())):
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.out_channels == 1000):
            return name, module
    raise AssertionError("every classification model ends in such a layer")


def name_of(network: nn.Module, layer: nn.Module) -> str:
    """Return the name of a layer in a network."""
    return next(name for name, module in network.named_modules() if module is layer)


def load_backbone(
    network: nn.Module,
    file: str,
    head_names: Sequence[str],
    name: str,
    convert: Callable[[str, Tensor], tuple[str, Tensor]] = lambda key, value: (key, value),
) -> None:
    """Load all weights except the head's from a file with a state_dict or a checkpoint.

    Args:
        network: network to load the weights into.
        file: path of the file; its number of classes may differ.
        head_names: names of the head's layers in `network`.
        name: the library's name of the network, for error messages.
        convert: function of an entry of the file that returns name and value in `network`.

    Raises:
        InputError: the file does not exist, or its weights do not fit the network.
    """
    saved = _read_state_dict(file)
    own = network.state_dict()
    heads = tuple(f"{head}." for head in head_names)
    body = {entry for entry in own if not entry.startswith(heads)}
    candidates = [
        dict(
            convert(key.removeprefix(prefix), value) for key, value in saved.items() if key.startswith(prefix)
        )
        for prefix in PREFIXES
    ]
    best = max(candidates, key=lambda entries: len(body & set(entries)))
    given = {key: value for key, value in best.items() if not key.startswith((*heads, *AUXILIARY_HEADS))}
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
        saved = _read(file)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(
            f"model.weights={file}: no such file; give a file with a state_dict, DEFAULT, or null"
        ) from error
    except IsADirectoryError as error:
        raise InputError(f"model.weights={file}: is a folder; give a file in it") from error
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
    return {str(key): value for key, value in saved.items() if isinstance(value, Tensor)}


def _read(file: str) -> Any:
    if file.endswith(".safetensors"):
        load_file = import_extra("safetensors.torch", f"model.weights={file}", "timm").load_file
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def _summarize_entries(verb: str, entries: Sequence[str]) -> Iterator[str]:
    if entries:
        more = f" and {len(entries) - 1:,} more" if len(entries) > 1 else ""
        yield f"{verb} {entries[0]}{more}"
