"""Distillation of a trained network into another one (Hinton et al. 2015, arXiv 1503.02531)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from project.datamodules.image_base import ImageDataModule
from project.datamodules.targets import check_classes
from project.errors import InputError
from project.modules.classifier import ImageClassifier
from project.runtime.bounds import Range


@dataclass
class Teacher:
    """Trained network, which is not a submodule of its student and not part of the student's checkpoints.

    Args:
        network: maps normalized images (B, C, H, W) to logits (B, K).
        mean: mean of each channel in [0, 1] by which its training images were normalized.
        std: standard deviation of each channel in [0, 1] by which they were normalized.
        class_names: names of the classes, in the order of the logits.
    """

    network: nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    class_names: Sequence[str]


@runtime_checkable
class LearnsFromTeacher(Protocol):
    """LightningModule whose teacher is loaded from a run folder and set before training."""

    teacher: str

    def set_teacher(self, teacher: Teacher) -> None:
        """Take the trained network."""
        ...


class DistilledClassifier(ImageClassifier):
    """Image classifier that learns from the labels and from the outputs of a teacher.

    The loss in training is (1 - `weight`) · `loss` + `weight` · T² · KL(teacher ‖ student), where the
    Kullback-Leibler divergence compares the softmax of logits divided by the temperature T (sec. 2). The
    teacher sees the augmented images of the student, in evaluation mode and the student's precision.
    Validation and test use only `loss`. Resuming needs the teacher's run folder again; evaluation does not.

    Args:
        network: see `ImageClassifier`.
        teacher: run folder of the teacher, from which the training command calls `set_teacher`.
        temperature: divisor of the logits, T [4].
        weight: weight of the teacher's term, 0 to 1 [0.9].
        loss: see `ImageClassifier`; without class weights.
        options: other arguments of `ImageClassifier`.

    Raises:
        InputError: the loss has class weights; when training starts, there is no teacher, or its classes are
            not those of the data.
    """

    def __init__(
        self,
        network: nn.Module,
        teacher: str,
        temperature: Annotated[float, Range(above=0)] = 4.0,
        weight: Annotated[float, Range(0, 1)] = 0.9,
        loss: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__(network, loss, **options)
        if self.total_weight is not None:
            raise InputError(
                "loss: class weights or an ignored class do not apply to the teacher's term (expected equal "
                "weights); set loss.class_weights=null"
            )
        self.teacher = teacher
        self.temperature = temperature
        self.weight = weight
        self._teacher: Teacher | None = None
        self._renormalization: tuple[Tensor, Tensor] | None = None

    def set_teacher(self, teacher: Teacher) -> None:
        """Set the teacher, and freeze its weights."""
        teacher.network.eval().requires_grad_(False)
        self._teacher = teacher

    def on_train_start(self) -> None:
        super().on_train_start()
        if self._teacher is None:
            raise InputError(f"task.teacher={self.teacher}: is not loaded; call set_teacher before training")
        weight = next(self.network.parameters())
        self._teacher.network.to(device=weight.device, dtype=weight.dtype)
        datamodule = getattr(self.trainer, "datamodule", None)
        if isinstance(datamodule, ImageDataModule):
            remedy = "choose a teacher that was trained on the same classes"
            check_classes(self._teacher.class_names, datamodule.class_names, datamodule.source, remedy)
            assert datamodule.mean is not None
            assert datamodule.std is not None
            self._renormalization = renormalization(
                (datamodule.mean, datamodule.std), (self._teacher.mean, self._teacher.std), weight
            )

    def compute_loss(self, inputs: Tensor, outputs: Any, targets: Any) -> Tensor:
        loss = super().compute_loss(inputs, outputs, targets)
        if not self.training:
            return loss
        assert self._teacher is not None
        with torch.no_grad():
            if self._renormalization is not None:
                shift, scale = self._renormalization
                inputs = inputs * scale + shift
            expected = self._teacher.network(inputs)
        return (1 - self.weight) * loss + self.weight * distillation_loss(outputs, expected, self.temperature)


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(teacher ‖ student) of logits (B, K) divided by the temperature T, the mean over images.

    The factor T² keeps the size of gradients for all temperatures (Hinton et al. 2015, sec. 2).
    """
    student = F.log_softmax(logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def renormalization(
    source: tuple[Sequence[float], Sequence[float]],
    target: tuple[Sequence[float], Sequence[float]],
    like: Tensor,
) -> tuple[Tensor, Tensor] | None:
    """Return shift and scale (C, 1, 1) from images normalized by one mean and std to those of another.

    Args:
        source: mean and std of each channel, by which images are normalized.
        target: mean and std that they should have been normalized by.
        like: tensor with the device and dtype of the result.

    Returns:
        None if both are the same.
    """
    if [list(values) for values in source] == [list(values) for values in target]:
        return None
    mean, std, other_mean, other_std = (
        torch.tensor(values, device=like.device, dtype=torch.float64).view(-1, 1, 1)
        for values in (*source, *target)
    )
    return ((mean - other_mean) / other_std).to(like.dtype), (std / other_std).to(like.dtype)
