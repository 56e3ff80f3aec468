"""Lightning's own callbacks train the same weights with this project's loop as with `lightning.Trainer`."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from project.callbacks.progress import Progress
from project.training.fit import drop_second_bar
from project.training.trainer import Trainer

EPOCHS = 4
Make = Callable[[Path], Callback]
CHANGING: dict[str, Make] = {
    "averaged_end": lambda _: callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2),
    "accumulation": lambda _: callbacks.GradientAccumulationScheduler({0: 1, 2: 3}),
    "backbone": lambda _: callbacks.BackboneFinetuning(unfreeze_backbone_at_epoch=2, verbose=False),
    "ema": lambda _: callbacks.EMAWeightAveraging(decay=0.9),
}
WATCHING: dict[str, Make] = {
    "rich_bar": lambda _: callbacks.RichProgressBar(),
    "tqdm_bar": lambda _: callbacks.TQDMProgressBar(),
    "rate": lambda _: callbacks.LearningRateMonitor("step"),
    "device": lambda _: callbacks.DeviceStatsMonitor(cpu_stats=False),
    "summary": lambda _: callbacks.ModelSummary(max_depth=2),
    "timer": lambda _: callbacks.Timer(timedelta(hours=1)),
    "second_checkpoint": lambda folder: callbacks.ModelCheckpoint(
        folder / "second", monitor="val_loss", save_top_k=2, every_n_epochs=1
    ),
}


class Regressor(L.LightningModule):
    """Linear regression on features of a backbone; draws no random numbers in training."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh())
        self.head = nn.Linear(8, 1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        return F.mse_loss(self.head(self.backbone(inputs))[:, 0], targets)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        trainable = [one for one in self.parameters() if one.requires_grad]
        optimizer = torch.optim.SGD(trainable, lr=0.1, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2)}


def fit(kind: type[L.Trainer], folder: Path, callback: Callback, **options: Any) -> Regressor:
    torch.manual_seed(0)
    module, inputs = Regressor(), torch.randn(48, 4)
    loader = DataLoader(TensorDataset(inputs, inputs.sum(1)), batch_size=4)
    trainer = kind(
        accelerator="cpu",
        max_epochs=EPOCHS,
        default_root_dir=folder,
        callbacks=[callback],
        logger=CSVLogger(folder),
        log_every_n_steps=5,
        enable_progress_bar=isinstance(callback, callbacks.ProgressBar),
        enable_checkpointing=isinstance(callback, callbacks.ModelCheckpoint),
        enable_model_summary=isinstance(callback, callbacks.ModelSummary),
        **options,
    )
    trainer.fit(module, loader, loader)
    return module


@pytest.mark.filterwarnings("ignore")  # Lightning's, about workers of loaders and replaced schedules
@pytest.mark.parametrize("batches_per_hook", [None, 1])
@pytest.mark.parametrize("name", [*CHANGING, *WATCHING])
def test_weights_equal_those_of_lightnings_trainer(
    name: str, batches_per_hook: int | None, tmp_path: Path
) -> None:
    make = {**CHANGING, **WATCHING}[name]
    expected = fit(L.Trainer, tmp_path / "plain", make(tmp_path / "plain"))
    found = fit(Trainer, tmp_path / "ours", make(tmp_path / "ours"), batches_per_hook=batches_per_hook)
    for key, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key
    files = [sorted(p.name for p in (tmp_path / one).glob("second/*.ckpt")) for one in ("plain", "ours")]
    assert files[0] == files[1]
    tables = [(tmp_path / one / "lightning_logs/version_0/metrics.csv") for one in ("plain", "ours")]
    if name == "rate":
        assert tables[0].read_text() == tables[1].read_text()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CHANGING)
def test_callbacks_that_change_training_change_the_weights(name: str, tmp_path: Path) -> None:
    changed = fit(L.Trainer, tmp_path, CHANGING[name](tmp_path))
    plain = fit(L.Trainer, tmp_path, Callback())
    assert any(not torch.equal(value, plain.state_dict()[key]) for key, value in changed.state_dict().items())


def test_a_configured_bar_of_lightning_replaces_the_projects_bar() -> None:
    rich, ours = callbacks.RichProgressBar(), Progress()
    assert drop_second_bar({"progress": ours, "rich": rich}) == {"rich": rich}
    assert drop_second_bar({"progress": ours}) == {"progress": ours}
