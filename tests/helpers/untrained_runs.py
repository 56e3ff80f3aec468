"""Runs with random weights that need no training and no folder."""

from pathlib import Path
from typing import Any

import torch
from conftest import Compose
from omegaconf import OmegaConf

from project.config.parts import parts_of
from project.inference.load_run import TrainedRun, build_untrained
from project.runs.run_folder import RunFolder
from project.runtime.process import silence_libraries


def untrained_run(composed: Compose, *overrides: str, seed: int = 0) -> TrainedRun:
    """Return the run that `overrides` describe, with random weights, as `load_run` would."""
    silence_libraries()
    composition = composed("logger=none", "trainer.accelerator=cpu", *overrides)
    config: dict[str, Any] = OmegaConf.to_container(composition, resolve=True)
    references: Any = OmegaConf.to_container(composition.task)
    config["task"] |= {name: f"${{{group}}}" for name, group in parts_of(references).items()}
    torch.manual_seed(seed)
    channels = config["data"]["input_shape"][0]
    return TrainedRun(
        run=RunFolder(Path("outputs/untrained")),
        config=config,
        checkpoint=Path("outputs/untrained/checkpoints/last.ckpt"),
        module=build_untrained(config).eval(),
        data_state={"class_names": [f"class {label}" for label in range(config["data"]["num_classes"])]},
        mean=[0.4] * channels,
        std=[0.25] * channels,
    )
