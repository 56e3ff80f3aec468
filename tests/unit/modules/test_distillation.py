"""Distillation: the loss of Hinton et al. 2015, and runs that learn from a run folder."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose
from omegaconf import OmegaConf
from scipy.special import rel_entr, softmax
from small_training import make_data, make_trainer
from torch import Tensor, nn

from project.config.validation import find_problems
from project.errors import InputError
from project.inference.load_run import load_run, load_teacher
from project.modules.classifier import ImageClassifier
from project.modules.distillation import DistilledClassifier, Teacher, distillation_loss, renormalization
from project.modules.losses import CrossEntropy
from project.modules.networks.mlp import MLP
from project.runs.run_folder import RunFolder
from project.train import train

SHAPE = (1, 8, 8)


def logits(seed: int) -> Tensor:
    return torch.randn(7, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_loss_is_the_divergence_of_softened_outputs_times_the_squared_temperature() -> None:
    student, teacher, temperature = logits(0), logits(1), 4.0
    soft = [softmax(values.numpy() / temperature, axis=1) for values in (teacher, student)]
    expected = temperature**2 * rel_entr(*soft).sum(axis=1).mean()
    assert float(distillation_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-12)
    assert float(distillation_loss(student, student, temperature)) == pytest.approx(0, abs=1e-12)


def test_the_gradient_at_high_temperatures_is_that_of_matching_logits() -> None:
    # Hinton et al. 2015, eq. 4: for zero-mean logits, (z - v) / (N T²) for each image, here times T².
    student, teacher = (values - values.mean(1, keepdim=True) for values in (logits(0), logits(1)))
    student.requires_grad_()
    distillation_loss(student, teacher, 1e4).backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, (student - teacher).detach() / 3 / 7, rtol=1e-3, atol=1e-6)


def test_renormalization_gives_the_images_of_the_other_statistics() -> None:
    pixels = torch.rand(5, 2, 4, 4, dtype=torch.float64)
    source, target = ([0.5, 0.2], [0.1, 0.3]), ([0.4, 0.6], [0.2, 0.5])

    def normalize(values: tuple[list[float], list[float]]) -> Tensor:
        mean, std = (torch.tensor(one, dtype=torch.float64).view(-1, 1, 1) for one in values)
        return (pixels - mean) / std

    found = renormalization(source, target, pixels)
    assert found is not None
    torch.testing.assert_close(normalize(source) * found[1] + found[0], normalize(target))
    assert renormalization(source, source, pixels) is None


def make_student(**options: Any) -> DistilledClassifier:
    torch.manual_seed(0)
    return DistilledClassifier(MLP(SHAPE, 3, widths=[8]), "runs/teacher", loss=CrossEntropy(3), **options)


def make_teacher() -> Teacher:
    torch.manual_seed(5)
    network = ImageClassifier(nn.Sequential(nn.Dropout(0.5), MLP(SHAPE, 3, widths=[16])))
    return Teacher(network, [0.5], [0.25], ["0", "1", "2"])


def test_training_weights_both_terms_and_evaluation_uses_the_labels_alone(tmp_path: Path) -> None:
    student, teacher = make_student(temperature=2.0, weight=0.75), make_teacher()
    student.set_teacher(teacher)
    data = make_data(mean=[0.4], std=[0.2])
    losses: list[tuple[Tensor, Tensor]] = []
    compute = student.compute_loss

    def record(inputs: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = compute(inputs, outputs, targets)
        plain = nn.functional.cross_entropy(outputs, targets)
        if student.training:
            seen = (inputs * 0.2 + 0.4 - 0.5) / 0.25
            soft = distillation_loss(outputs, teacher.network(seen), 2.0)
            plain = 0.25 * plain + 0.75 * soft
        losses.append((loss.detach(), plain.detach()))
        return loss

    student.compute_loss = record  # type: ignore[method-assign]
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    trainer = make_trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    trainer.fit(student, data)
    assert len(losses) > 7  # training and validation
    for loss, expected in losses:
        torch.testing.assert_close(loss, expected)
    assert all(torch.equal(value, before[name]) for name, value in teacher.network.state_dict().items())
    assert not any("teacher" in name for name in student.state_dict())


def test_wrong_classes_and_a_missing_teacher_are_errors(tmp_path: Path) -> None:
    student, teacher = make_student(), make_teacher()
    with pytest.raises(InputError, match=r"task\.teacher=runs/teacher: is not loaded"):
        make_trainer(tmp_path, enable_checkpointing=False).fit(student, make_data())
    teacher.class_names = ["0", "2", "1"]
    student.set_teacher(teacher)
    with pytest.raises(InputError, match="choose a teacher that was trained on the same classes"):
        make_trainer(tmp_path, enable_checkpointing=False).fit(student, make_data())
    with pytest.raises(InputError, match="class weights"):
        DistilledClassifier(MLP(SHAPE, 3), "run", loss=CrossEntropy(3, class_weights=[1, 2, 3]))


TINY = (
    *("data=synthetic", "data.train_size=32", "data.val_size=8", "data.test_size=20", "data.batch_size=16"),
    *("trainer.max_epochs=1", "trainer.accelerator=cpu", "logger=none", "~callbacks.progress", "model=mlp"),
)


@pytest.fixture
def make_run(composed: Compose, tmp_path: Path) -> Callable[..., RunFolder]:
    def trained(name: str, *overrides: str) -> RunFolder:
        config = composed(*TINY, *overrides, run=tmp_path / name)
        (tmp_path / name / ".hydra").mkdir(parents=True)
        OmegaConf.save(config, tmp_path / name / ".hydra" / "config.yaml")
        train(config)
        return RunFolder(tmp_path / name)

    return trained


@pytest.mark.slow
def test_a_run_learns_from_a_run_folder_and_is_evaluated_without_it(
    make_run: Callable[..., RunFolder], composer: Compose
) -> None:
    teacher = make_run("teacher")
    override = f"task.teacher={teacher.path}"
    student = make_run("student", "task=distillation", override, "model.widths=[8]")
    saved = torch.load(student.checkpoints / "last.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == load_run(student).module.state_dict().keys()
    with pytest.raises(InputError, match=r"data.input_shape=\[1, 28, 28\] \(expected \[1, 9, 9\]\)"):
        load_teacher(str(teacher.path), {"data": {"input_shape": [1, 9, 9], "num_classes": 10}})
    shutil.rmtree(teacher.path)
    assert isinstance(load_run(student).module, DistilledClassifier)
    (problem,) = find_problems(composer(*TINY, "task=distillation", override))
    assert "no such folder" in problem
    (problem,) = find_problems(composer(*TINY, "task=distillation", "task.teacher=last"))
    assert problem.startswith("task.teacher=last: ")
    (problem,) = find_problems(composer(*TINY, "task=distillation"))
    assert problem.startswith("task.teacher: not given")
