"""Classification networks of timm with random, pretrained or saved weights."""

from collections.abc import Sequence
from typing import Annotated, Any

from torch import Tensor

from project.errors import InputError, summarize
from project.modules.networks.pretrained import (
    PretrainedNetwork,
    is_file_name,
    load_backbone,
    name_of,
    refuse_freezing_random_weights,
    unknown_name_error,
)
from project.runtime.bounds import Range
from project.runtime.extras import import_extra


class TimmModel(PretrainedNetwork):
    """Classification network of timm with a new head (Wightman 2019, doi 10.5281/zenodo.4414861).

    The first layer takes the channels of the images; for gray images its pretrained filters are summed over
    their channels. Networks of a fixed size, such as vision transformers, are built for the images' size.

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: number of logits.
        name: timm's name, e.g. `resnet18`, `vit_tiny_patch16_224`, or with the tag of pretrained weights,
            e.g. `resnet18.a1_in1k`.
        weights: None: random weights; `DEFAULT`: pretrained weights, downloaded from the Hugging Face Hub; or
            a file (`.safetensors`, or a state_dict of torch) with weights of this network with any number of
            classes, such as a run's checkpoint.
        freeze: if True, train only the new head; the backbone keeps its weights and batch norm statistics.
        resize: side to which images are resized on the device, pixels, e.g. 224; None: do not resize.

    Raises:
        InputError: timm is not installed, the name or the weights are unknown, the weights cannot be
            downloaded or read, or the network does not accept the images.
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
        timm = import_extra("timm", "model=timm", "timm")
        if not timm.is_model(name) or (name not in timm.list_models(pretrained=True) and "." in name):
            raise unknown_name_error(name, "timm", [*timm.list_models(), *timm.list_models(pretrained=True)])
        refuse_freezing_random_weights(freeze, weights)
        size = [resize, resize] if resize is not None else list(input_shape[1:])
        network = _build_network(timm, name, weights, size, in_chans=input_shape[0], num_classes=num_classes)
        heads = network.get_classifier()  # several layers in distilled networks
        layers = heads if isinstance(heads, tuple | list) else [heads]
        super().__init__(
            network,
            [name_of(network, layer) for layer in layers],
            input_shape=input_shape,
            channels=input_shape[0],
            freeze=freeze,
            resize=resize,
            key=f"model.name={name}",
        )


def _build_network(timm: Any, name: str, weights: str | None, size: Sequence[int], **options: int) -> Any:
    """Return timm's network with a new head, with weights loaded.

    Args:
        timm: the package.
        name: timm's name of the network.
        weights: see `TimmModel`.
        size: (H, W) of the network's input.
        options: arguments of every network.
    """
    sizes = {"img_size": tuple(size)} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    try:
        network = timm.create_model(name, **options, **sizes)
    except (ValueError, RuntimeError, AssertionError, TypeError) as error:
        height, width = size
        raise InputError(
            f"model.name={name}: cannot be built for images of {height}×{width} pixels ({summarize(error)}); "
            "try model.resize=224"
        ) from error
    if weights is None:
        return network
    if is_file_name(weights):
        _load_file(timm, network, weights, name)
        return network
    if weights != "DEFAULT":
        raise InputError(
            f"model.weights={weights}: choose DEFAULT, null, or a file; tags of pretrained weights are part "
            f"of the name, as in model.name={name.partition('.')[0]}.TAG"
        )
    if not timm.models.is_model_pretrained(name):
        near = timm.list_models(f"{name.partition('_')[0]}*", pretrained=True)[:3]
        hint = f", or another model.name, such as {', '.join(near)}" if near else ""
        raise InputError(f"model.weights=DEFAULT: timm has no weights of {name}; set a file{hint}")
    try:
        return timm.create_model(name, pretrained=True, **options, **sizes)
    except Exception as error:  # clients of the Hub raise exceptions of many types
        hub = network.pretrained_cfg.get("hf_hub_id") or name
        raise InputError(
            f"model.weights=DEFAULT: cannot download the weights of {hub} ({summarize(error)}); download "
            f"https://huggingface.co/{hub}/resolve/main/model.safetensors, and set model.weights to its path"
        ) from error


def _load_file(timm: Any, network: Any, file: str, name: str) -> None:
    first = network.pretrained_cfg["first_conv"] or ()
    layers = [first] if isinstance(first, str) else first
    channels = {f"{layer}.weight": network.get_submodule(layer).weight.shape[1] for layer in layers}

    def convert(key: str, value: Tensor) -> tuple[str, Tensor]:
        if key in channels and value.ndim == 4 and value.shape[1] == 3 != channels[key]:
            value = timm.models.adapt_input_conv(channels[key], value)
        return key, value

    heads = network.pretrained_cfg["classifier"]
    load_backbone(network, file, [heads] if isinstance(heads, str) else list(heads), name, convert)
