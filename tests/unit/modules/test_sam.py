"""SAM: one step against a computation by hand, and runs that resume exactly."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose, read_table
from small_training import make_data, make_trainer
from torch import Tensor, nn

from project.callbacks.training_stats import TrainingStats
from project.config.validation import find_problems, optimizer_combinations
from project.config.validation.command_request import command_request
from project.loggers.csv import MetricsCSV
from project.modules.classifier import ImageClassifier
from project.modules.losses import CrossEntropy
from project.modules.networks.mlp import MLP
from project.modules.optim.sam import SAM, SAMAdamW


def quadratic(weight: Tensor) -> Tensor:
    """Loss with the gradient (2 w₁, 8 w₂)."""
    return weight[0] ** 2 + 4 * weight[1] ** 2


def take_step(optimizer: torch.optim.Optimizer, weight: Tensor) -> float:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = quadratic(weight)
        loss.backward()
        return loss.detach()

    return float(optimizer.step(closure))


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_step_equals_one_by_hand(adaptive: bool) -> None:
    weight = nn.Parameter(torch.tensor([3.0, 0.5], dtype=torch.float64))
    optimizer = SAM([weight], lr=0.1, rho=0.2, adaptive=adaptive)
    assert take_step(optimizer, weight) == 10.0
    # w = (3, 0.5), g = (6, 4): e = 0.2 g / √52, or adaptive e = 0.2 w² g / ‖(18, 2)‖.
    shift = (
        (0.2 * 9 * 6 / 328**0.5, 0.2 * 0.25 * 4 / 328**0.5) if adaptive else (1.2 / 52**0.5, 0.8 / 52**0.5)
    )
    expected = [3 - 0.1 * 2 * (3 + shift[0]), 0.5 - 0.1 * 8 * (0.5 + shift[1])]
    torch.testing.assert_close(weight.detach(), torch.tensor(expected, dtype=torch.float64))


def test_a_step_with_adamw_is_that_of_adamw_with_the_gradient_at_the_shifted_weights() -> None:
    weight, plain = (nn.Parameter(torch.tensor([3.0, 0.5], dtype=torch.float64)) for _ in range(2))
    optimizer, reference = SAMAdamW([weight], lr=0.1, rho=0.2), torch.optim.AdamW([plain], lr=0.1)
    for _ in range(3):
        (gradient,) = torch.autograd.grad(quadratic(plain), plain)
        shifted = (plain + 0.2 * gradient / gradient.norm()).detach().requires_grad_()
        (plain.grad,) = torch.autograd.grad(quadratic(shifted), shifted)
        reference.step()
        take_step(optimizer, weight)
        torch.testing.assert_close(weight, plain, rtol=1e-10, atol=1e-12)


def fit(folder: Path, **options: Any) -> tuple[dict[str, Tensor], list[dict[str, str]]]:
    folder.mkdir()
    torch.manual_seed(0)
    module = ImageClassifier(
        MLP((1, 8, 8), 3, widths=[8]), CrossEntropy(3), partial(SAM, lr=0.05, rho=0.05, momentum=0.9)
    )
    logger = MetricsCSV(str(folder / "metrics.csv"))
    ckpt_path = options.pop("ckpt_path", None)
    trainer = make_trainer(folder, [TrainingStats()], logger=logger, enable_checkpointing=False, **options)
    trainer.fit(module, make_data(seed=3), ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / "kept.ckpt")
    return module.state_dict(), read_table(folder / "metrics.csv")


def test_a_resumed_run_equals_an_uninterrupted_one_and_counts_images_once(tmp_path: Path) -> None:
    weights, rows = fit(tmp_path / "full")
    fit(tmp_path / "half", max_epochs=1)
    resumed, _ = fit(tmp_path / "resumed", ckpt_path=tmp_path / "half" / "kept.ckpt")
    assert all(torch.equal(value, resumed[name]) for name, value in weights.items())
    # 100 training images in batches of 16: 7 steps an epoch, logged every 3 steps and at the end of an epoch.
    logged = [int(row["step"]) for row in rows if row["train/loss"]]
    assert logged == [3, 6, 7, 9, 12, 14]
    assert [int(row["step"]) for row in rows if row["train/grad_norm"]] == logged


def test_options_that_split_a_step_are_refused(composer: Compose) -> None:
    command = command_request(composer("optim=sam"))
    for key, value in (("trainer.accumulate_grad_batches", 2), ("trainer.precision", "16-mixed")):
        values = {"optim._target_": "project.modules.optim.sam.SAM", key: value}
        (problem,) = optimizer_combinations.find_problems(values, command)
        assert problem.startswith(f"{key}={value}: SAM ")
    assert not list(find_problems(composer("optim=sam_adamw", "optim.adaptive=true", "optim.rho=0.5")))
