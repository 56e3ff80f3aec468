"""Modules and loaders of users resume within an epoch with bit-equal weights."""

from pathlib import Path

import lightning as L
import pytest
import torch
from user_modules import AutoEncoder, StatefulData, VectorData

from project.callbacks.checkpointing import LastCheckpoint
from project.callbacks.run_record import RunRecord
from project.training.trainer import Trainer


def fit(data: L.LightningDataModule, folder: Path, ckpt_path: Path | None = None, **limits: int) -> Trainer:
    L.seed_everything(1, workers=True, verbose=False)
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[RunRecord({"seed": 1}), LastCheckpoint(folder, every_steps=5)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **limits,
    )
    trainer.fit(AutoEncoder(), data, ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.parametrize("kind", [VectorData, StatefulData])
def test_a_run_resumed_within_an_epoch_has_the_same_weights(
    kind: type[VectorData], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "project")
    expected = fit(kind(), tmp_path / "a", max_epochs=2)
    fit(kind(), tmp_path / "b", max_epochs=2, max_steps=17)
    resumed = fit(kind(), tmp_path / "b", tmp_path / "b/last.ckpt", max_epochs=2)
    assert resumed.global_step == expected.global_step == 24
    for key, value in expected.lightning_module.state_dict().items():
        assert torch.equal(resumed.lightning_module.state_dict()[key], value), key
    reads_again = "reading the first 5 batches of the epoch again" in caplog.text
    assert reads_again == (kind is VectorData)  # the other loader restores its position
