"""Image classifiers of Hugging Face transformers, from a folder on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import Tensor

from project.errors import InputError, summarize
from project.modules.networks.pretrained import (
    PretrainedNetwork,
    find_head_layer,
    refuse_freezing_random_weights,
)
from project.runtime.bounds import Range
from project.runtime.extras import import_extra


class HuggingFaceModel(PretrainedNetwork):
    """Image classifier of a folder that `save_pretrained` wrote, with a head for this number of classes.

    Nothing is downloaded, and no code of the folder runs. Images with one channel are repeated to the
    channels of the network.

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: number of logits; the head is new if the folder's has another number.
        path: folder with `config.json` and the weights.
        weights: `DEFAULT`: the weights of the folder; None: random weights.
        freeze: if True, train only the head; the backbone keeps its weights and batch norm statistics.
        resize: side to which images are resized on the device, pixels, e.g. 224; None: do not resize.

    Raises:
        InputError: transformers is not installed, the folder holds no image classifier, or the network does
            not accept the images.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        path: str,
        weights: Literal["DEFAULT"] | None = "DEFAULT",
        freeze: bool = False,
        resize: Annotated[int, Range(1)] | None = None,
    ) -> None:
        transformers = import_extra("transformers", "model=huggingface", "huggingface")
        refuse_freezing_random_weights(freeze, weights)
        if not (Path(path) / "config.json").is_file():
            raise InputError(
                f"model.path={path}: no folder with a config.json (expected one of save_pretrained)"
            )
        transformers.logging.set_verbosity_error()  # its report of a new head
        transformers.logging.disable_progress_bar()
        auto = transformers.AutoModelForImageClassification
        options: dict[str, Any] = {"num_labels": num_classes, "local_files_only": True}
        try:
            if weights is None:
                network = auto.from_config(transformers.AutoConfig.from_pretrained(path, **options))
            else:
                network = auto.from_pretrained(path, ignore_mismatched_sizes=True, **options)
        except Exception as error:  # the library raises exceptions of many types for files that do not fit
            raise InputError(f"model.path={path}: holds no image classifier ({summarize(error)})") from error
        super().__init__(
            network,
            ["classifier" if hasattr(network, "classifier") else find_head_layer(network)[0]],
            input_shape=input_shape,
            channels=getattr(network.config, "num_channels", 3),
            freeze=freeze,
            resize=resize,
            key=f"model.path={path}",
        )

    def logits(self, images: Tensor) -> Tensor:
        return self.network(images).logits
