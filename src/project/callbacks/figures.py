"""Pictures, tables and points of a run, for loggers that take them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from project.callbacks.features import last_features
from project.callbacks.predictions import Answers, as_markdown
from project.figures import confusion_matrix, contact_sheet, to_uint8

LARGEST_TILE = 128
"""Width of the images on a sheet, pixels."""


class Drawings:
    """What is drawn, each with its place in TensorBoard.

    Args:
        boards: loggers that take pictures.
        data: the run's data, set up for the test where that is drawn.
        step: of the optimizer, at which it is shown.
    """

    def __init__(self, boards: Sequence[Any], data: Any, step: int) -> None:
        self.boards = boards
        self.data = data
        self.step = step

    def samples(self, images: Tensor, targets: Tensor) -> None:
        """Training images as augmented, with what they are taken for.

        Args:
            images: (N, C, H, W) normalized, with 1 or 3 channels, on the CPU.
            targets: (N,) class indices, or (N, K) shares of classes.
        """
        pixels = to_uint8(images.float(), self.data.mean, self.data.std)
        captions = [_told(target, self.data.class_names) for target in targets]
        title = "Training images as the network sees them"
        self._show("train/images", _sheet(pixels, captions, title))

    def confusion(self, answers: Answers) -> None:
        """The confusion matrix of the test."""
        counts = answers.confusion(self.data.num_classes)
        right, images = int(counts.diag().sum()), len(answers.labels)
        title = f"Test: {right:,} of {images:,} right ({100 * right / images:.2f} %)"
        self._show("test/confusion", confusion_matrix(counts, self.data.class_names, title=title))

    def mistakes(self, answers: Answers, count: int) -> None:
        """The worst mistakes of the test, at most `count`."""
        worst = answers.worst(count)
        names = self.data.class_names
        captions = [
            f"{names[label]} → {names[answer]}\n{100 * sure:.0f} % sure"
            for label, answer, sure in zip(
                *(column[worst].tolist() for column in (answers.labels, answers.predictions)),
                answers.confidences[worst].tolist(),
                strict=True,
            )
        ]
        wrong = int((answers.predictions != answers.labels).sum())
        title = f"Worst of {wrong:,} mistakes in the test: true class → prediction"
        pixels = self.data.pixels("test", answers.places[worst])
        self._show("test/mistakes", _sheet(pixels, captions, title))

    def classes(self, answers: Answers) -> None:
        """A table of the classes."""
        text = as_markdown(answers.confusion(self.data.num_classes), self.data.class_names)
        for board in self.boards:
            board.log_markdown("test/classes", text, self.step)

    def graph(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """What the network computes."""
        images = torch.zeros(1, *self.data.input_shape, device=module.device)
        with _answering(trainer, module, images) as (network, run, taken):
            for board in self.boards:
                board.draw_graph(network, run, taken)

    def points(self, trainer: L.Trainer, module: L.LightningModule, answers: Answers, count: int) -> None:
        """The network's features of `count` images of the test."""
        chosen = torch.linspace(0, len(answers.labels) - 1, count).long()
        pixels = self.data.pixels("test", answers.places[chosen])
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.data.mean, self.data.std))
        parts = []
        for part in pixels.split(self.data.eval_batch_size):
            images = ((part / 255 - mean) / std).to(module.device)
            with _answering(trainer, module, images) as (network, run, _):
                parts.append(last_features(network, run).cpu())
        labels, predictions = answers.labels[chosen].tolist(), answers.predictions[chosen].tolist()
        names = self.data.class_names
        rows = [
            (names[label], names[answer], "yes" if label == answer else "no")
            for label, answer in zip(labels, predictions, strict=True)
        ]
        points: np.ndarray[Any, Any] = torch.cat(parts).numpy()
        for board in self.boards:
            columns = ("class", "prediction", "right")
            board.log_projection("features of test images", points, columns, rows, pixels)

    def _show(self, tag: str, picture: Any) -> None:
        for board in self.boards:
            board.log_picture(tag, picture, self.step)


@contextmanager
def _answering(
    trainer: L.Trainer, module: L.LightningModule, images: Tensor
) -> Iterator[tuple[torch.nn.Module, Callable[[], Tensor], Tensor]]:
    """The network, what has it answer to images in the run's precision and never compiled, and the images as
    it takes them.
    """
    network: Any = module.network
    taken = trainer.precision_plugin.convert_input(images)
    taken = taken.contiguous(memory_format=module.memory_format)
    was_training = network.training
    network.eval()
    try:
        with trainer.precision_plugin.forward_context():
            yield network, lambda: network._call_impl(taken), taken
    finally:
        network.train(was_training)


def _sheet(pixels: Any, captions: list[str], title: str) -> Any:
    """A sheet that is small enough for event files where the images are large."""
    large = max(pixels.shape[2:]) > LARGEST_TILE
    return contact_sheet(pixels, captions, title=title, tile=LARGEST_TILE if large else None)


def _told(target: Tensor, class_names: list[str]) -> str:
    """What a training image is taken for: a class, or shares of classes after mixup and cutmix."""
    if target.ndim == 0:
        return class_names[int(target)]
    shares, classes = target.float().topk(min(2, len(target)))
    told = [
        f"{class_names[place]} {100 * share:.0f} %"
        for share, place in zip(shares.tolist(), classes.tolist(), strict=True)
        if share >= 0.005
    ]
    return "\n".join(told)
