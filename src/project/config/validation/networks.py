"""Networks of ours: sizes that fit each other and the images."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from project.config.validation import torchvision_models
from project.config.validation.command_request import Asked
from project.runtime.text import did_you_mean

MODULES = "project.modules.networks."

PAIRS: Mapping[str, tuple[str, ...]] = {
    f"{MODULES}cnn.CNN": ("model.channels", "model.dropout"),
    f"{MODULES}cnn.LeNet": ("model.channels", "model.hidden"),
    f"{MODULES}cnn.ConvNet": ("model.channels",),
}
"""Lists with a value each for a network's first and second layer."""

TRIPLES: Mapping[str, tuple[str, ...]] = {
    f"{MODULES}cnn.BatchNormCNN": ("model.channels",),
    f"{MODULES}airbench.Airbench": ("model.widths",),
}

LAYERS: Mapping[str, tuple[int, ...]] = {
    f"{MODULES}cnn.CNN": (-2, -2, 2),
    f"{MODULES}cnn.LeNet": (-4, 2, -4, 2),
    f"{MODULES}cnn.ConvNet": (-4, 2, -4, 2),
}
"""What each layer does to the side of an image: takes pixels off, or divides it."""


def find_problems(right: Mapping[str, Any], command: Asked) -> Iterator[str]:
    """Yield what is wrong with a network of ours; arguments as of `data.find_problems`."""
    target = str(right.get("model._target_"))
    for number, word, lists in ((2, "two", PAIRS), (3, "three", TRIPLES)):
        for key in lists.get(target, ()):
            if isinstance(value := right.get(key), list) and len(value) != number:
                yield f"{key}={value}: {word} values are needed, one for each layer"
    yield from _too_small_images(target, right)
    if target == f"{MODULES}vit.ViT":
        yield from _wrong_transformer(right)
    if target == f"{MODULES}resnet.ResNet":
        yield from _wrong_depth(right.get("model.depth"))
    if target == f"{MODULES}torchvision_model.TorchvisionModel":
        yield from _wrong_torchvision(right)


def _too_small_images(target: str, right: Mapping[str, Any]) -> Iterator[str]:
    shape = right.get("data.input_shape")
    if not isinstance(shape, list):
        return
    side = least = min(shape[1:])
    layers = LAYERS.get(target, ())
    if target == f"{MODULES}cnn.BatchNormCNN" and isinstance(kernel := right.get("model.kernel_size"), int):
        layers = (1 - kernel, 2, -2, 2, -2)
    if target == f"{MODULES}airbench.Airbench" and isinstance(size := right.get("model.whitening_size"), int):
        if least < size:
            yield (
                f"model.whitening_size={size}: must be at most {least}, the side of data.input_shape={shape}"
            )
        return
    for layer in layers:
        side = side + layer if layer < 0 else side // layer
        if side < 1:
            yield (
                f"data.input_shape={shape}: too small for this network; use larger images (data.resize=32) "
                "or another model"
            )
            return


def _wrong_transformer(right: Mapping[str, Any]) -> Iterator[str]:
    heads, dim = right.get("model.heads"), right.get("model.dim")
    if isinstance(heads, int) and isinstance(dim, int) and dim % heads:
        yield f"model.heads={heads}: must divide model.dim={dim}"
    patch, shape = right.get("model.patch_size"), right.get("data.input_shape")
    if isinstance(patch, int) and isinstance(shape, list) and patch > max(shape[1:]):
        yield (
            f"model.patch_size={patch}: larger than the images, data.input_shape={shape}; choose at most "
            f"{max(shape[1:])}"
        )


def _wrong_depth(depth: Any) -> Iterator[str]:
    if isinstance(depth, int) and depth not in (10, 18, 34) and not (depth >= 8 and depth % 6 == 2):
        yield f"model.depth={depth}: choose 10, 18, 34, or 6n + 2 (8, 14, 20, 32, 44, 56, 110)"


def _wrong_torchvision(right: Mapping[str, Any]) -> Iterator[str]:
    name, weights = right.get("model.name"), right.get("model.weights")
    known = torchvision_models.names()
    if known and isinstance(name, str) and name not in known:
        hint = did_you_mean(name, known)
        yield f"model.name={name}: no classification model of torchvision; {hint}"
        return
    if right.get("model.freeze") is True and right.get("callbacks.freeze.epochs"):
        yield (
            "model.freeze=true: nothing but the head ever trains; set it to false and have "
            f"callbacks.freeze.epochs={right['callbacks.freeze.epochs']} freeze the rest for a while"
        )
    if weights is None:
        if right.get("model.freeze") is True and "model.weights" in right:
            yield "model.freeze=true: needs pretrained weights (model.weights=DEFAULT)"
        return
    if "://" in str(weights):
        yield f"model.weights={weights}: an address; download the file first, and give its path"
    elif Path(str(weights)).suffix and not Path(str(weights)).is_file():
        yield f"model.weights={weights}: no such file; give a file with a state_dict, DEFAULT, or null"
    elif not Path(str(weights)).is_file():
        members = torchvision_models.weights_of(str(name))
        if members and weights not in ("DEFAULT", *members):
            allowed = ", ".join(["DEFAULT", *members])
            yield f"model.weights={weights}: choose from {allowed}, null, or a file"
