"""The MLP on MNIST in the style of Lightning's tutorials, with the recipe of experiment=mnist_mlp.

python benchmarks/tutorials/stock_lightning.py --data DIR

One epoch on 55,000 images, validation on 5,000, test, checkpoints and TensorBoard, with Lightning's defaults.
Writes into the working directory.
"""

import argparse
from importlib.util import find_spec

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, random_split
from torchmetrics.classification import MulticlassAccuracy
from torchvision import datasets, transforms

Batch = tuple[Tensor, Tensor]


class LitMLP(L.LightningModule):
    """One hidden layer, with loss and accuracy of each stage."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 128), nn.ReLU(), nn.Linear(128, 10))
        self.loss_fn = nn.CrossEntropyLoss()
        self.train_acc = MulticlassAccuracy(10, average="micro")
        self.val_acc = MulticlassAccuracy(10, average="micro")
        self.test_acc = MulticlassAccuracy(10, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        return self.model(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss."""
        images, labels = batch
        logits = self(images)
        loss = self.loss_fn(logits, labels)
        self.train_acc(logits, labels)
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_acc", self.train_acc, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy of a batch."""
        images, labels = batch
        logits = self(images)
        self.val_acc(logits, labels)
        self.log("val_loss", self.loss_fn(logits, labels), prog_bar=True)
        self.log("val_acc", self.val_acc, prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy of a batch."""
        images, labels = batch
        logits = self(images)
        self.test_acc(logits, labels)
        self.log("test_loss", self.loss_fn(logits, labels))
        self.log("test_acc", self.test_acc)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def main() -> None:
    """Train, validate and test."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batches", type=int, help="limit of each epoch, for a trial")
    arguments = parser.parse_args()

    L.seed_everything(1)
    transform = transforms.ToTensor()
    train_data, val_data = random_split(
        datasets.MNIST(arguments.data, train=True, transform=transform), [55_000, 5_000]
    )
    test_data = datasets.MNIST(arguments.data, train=False, transform=transform)
    train_loader = DataLoader(train_data, batch_size=64, shuffle=True)
    val_loader = DataLoader(val_data, batch_size=64)
    test_loader = DataLoader(test_data, batch_size=64)

    callbacks: list[Callback] = [ModelCheckpoint(monitor="val_acc", mode="max")]
    if find_spec("rich") is not None:
        callbacks.append(RichProgressBar())
    trainer = L.Trainer(
        max_epochs=arguments.epochs,
        logger=TensorBoardLogger("stock"),
        callbacks=callbacks,
        **{f"limit_{split}_batches": arguments.batches for split in ("train", "val", "test")},
    )
    model = LitMLP()
    trainer.fit(model, train_loader, val_loader)
    trainer.test(model, test_loader, ckpt_path="best")


if __name__ == "__main__":
    main()
