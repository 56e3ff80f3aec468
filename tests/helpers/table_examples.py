"""Lightning modules of tables, as users write them: several labels from a CSV file, and a regression."""

import csv

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics import MeanAbsoluteError, R2Score
from torchmetrics.classification import MultilabelAUROC, MultilabelF1Score

CONFIG_TARGETS = ("LabeledTable", "Tagger", "PriceRegressor")


def write_tables(folder, rows=64):
    """Write `labels.csv` (six features, three labels) and `prices.csv` (four features, one real value)."""
    draws = torch.Generator().manual_seed(0)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*"abcdef", "sweet", "round", "red"])
        for row in torch.randn(rows, 6, generator=draws).tolist():
            writer.writerow([f"{value:.4f}" for value in row] + [int(value > 0) for value in row[:3]])
    with (folder / "prices.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["rooms", "area", "age", "floor", "price"])
        for row in torch.rand(rows, 4, generator=draws).tolist():
            writer.writerow([*(f"{value:.4f}" for value in row), f"{1000 * row[1] - 200 * row[2]:.2f}"])


class LabeledTable(L.LightningDataModule):
    """Features and labels of a CSV file, of which the last columns are labels."""

    def __init__(self, file: str = "labels.csv", num_labels: int = 3, batch_size: int = 8):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage):
        with open(self.hparams.file, newline="") as stream:
            next(reader := csv.reader(stream))
            values = torch.tensor([[float(cell) for cell in row] for row in reader])
        first = values.shape[1] - self.hparams.num_labels
        full = TensorDataset(values[:, :first], values[:, first:].long())
        parts = random_split(full, [0.65, 0.2, 0.15], torch.Generator().manual_seed(0))
        self.train_set, self.val_set, self.test_set = parts

    def train_dataloader(self):
        return DataLoader(self.train_set, self.hparams.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val_set, self.hparams.batch_size)

    def test_dataloader(self):
        return DataLoader(self.test_set, self.hparams.batch_size)


class Tagger(L.LightningModule):
    """Multi-label classifier with metrics of its own, one of which collects all predictions."""

    def __init__(self, num_features: int = 6, num_labels: int = 3, width: int = 8, lr: float = 1e-2):
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            nn.Linear(num_features, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, num_labels)
        )
        self.train_f1 = MultilabelF1Score(num_labels)
        self.val_f1 = MultilabelF1Score(num_labels)
        self.val_auroc = MultilabelAUROC(num_labels)
        self.test_f1 = MultilabelF1Score(num_labels)

    def forward(self, features):
        return self.network(features)

    def training_step(self, batch, batch_idx):
        features, labels = batch
        logits = self(features)
        self.train_f1(logits.sigmoid(), labels)
        self.log("train_f1", self.train_f1, on_step=False, on_epoch=True)
        return F.binary_cross_entropy_with_logits(logits, labels.float())

    def validation_step(self, batch, batch_idx):
        features, labels = batch
        probabilities = self(features).sigmoid()
        self.val_f1.update(probabilities, labels)
        self.val_auroc.update(probabilities, labels)
        self.log("val_f1", self.val_f1)
        self.log("val_auroc", self.val_auroc)

    def test_step(self, batch, batch_idx):
        features, labels = batch
        self.test_f1.update(self(features).sigmoid(), labels)
        self.log("test_f1", self.test_f1)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), self.hparams.lr)


class PriceRegressor(L.LightningModule):
    """Regression of one value; the batches are pairs of features (B, F) and targets (B, 1) or (B,)."""

    def __init__(self, num_features: int = 4, width: int = 8, lr: float = 1e-2):
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(nn.Linear(num_features, width), nn.Tanh(), nn.Linear(width, 1))
        self.mae = nn.ModuleDict({f"{split}_": MeanAbsoluteError() for split in ("train", "val", "test")})
        self.r2 = R2Score()

    def forward(self, features):
        return self.network(features)[:, 0]

    def step(self, batch, split):
        features, targets = batch
        values, targets = self(features), targets.flatten() / 1000
        self.mae[f"{split}_"](values, targets)
        self.log(f"{split}_mae", self.mae[f"{split}_"], on_step=False, on_epoch=True)
        return values, targets

    def training_step(self, batch, batch_idx):
        return F.mse_loss(*self.step(batch, "train"))

    def validation_step(self, batch, batch_idx):
        self.r2.update(*self.step(batch, "val"))
        self.log("val_r2", self.r2)

    def test_step(self, batch, batch_idx):
        self.step(batch, "test")

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), self.hparams.lr, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)]
