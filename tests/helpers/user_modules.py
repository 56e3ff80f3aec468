"""LightningModules and data modules as users write them, without this project's base classes."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

CONFIG_TARGETS = (
    "AutoEncoder",
    "FileReader",
    "GAN",
    "SilentModule",
    "VectorData",
    "TrainingData",
    "StatefulData",
)
FEATURES = 8


class Vectors(Dataset[dict[str, Tensor]]):
    """Vectors (8,) and their sums, with noise that is drawn anew at every access [0.1]."""

    def __init__(self, size: int, noise: float = 0.1) -> None:
        self.size, self.noise = size, noise

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        clean = torch.randn(FEATURES, generator=torch.Generator().manual_seed(index))
        return {"x": clean + self.noise * torch.randn(FEATURES), "sum": clean.sum()}


class TrainingData(L.LightningDataModule):
    """Data module with a training loader only; the batches are dicts."""

    def __init__(self, batch_size: int = 8, size: int = 96, workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.size, self.workers = batch_size, size, workers

    def train_dataloader(self) -> Any:
        return DataLoader(
            Vectors(self.size), batch_size=self.batch_size, shuffle=True, num_workers=self.workers
        )


class VectorData(TrainingData):
    """Data module with all loaders."""

    def val_dataloader(self) -> Any:
        return DataLoader(Vectors(32, noise=0), batch_size=self.batch_size)

    def test_dataloader(self) -> Any:
        return DataLoader(Vectors(20, noise=0), batch_size=self.batch_size)


class StatefulLoader:
    """Loader that restores its own position and order."""

    def __init__(self, dataset: Dataset[Any], batch_size: int) -> None:
        self.dataset, self.batch_size = dataset, batch_size
        self.order: list[int] = []
        self.position = 0
        self.restored = False

    def __len__(self) -> int:
        return len(self.dataset) // self.batch_size  # type: ignore[arg-type]

    def __iter__(self) -> Any:
        if not self.restored:
            self.order, self.position = torch.randperm(len(self.dataset)).tolist(), 0  # type: ignore[arg-type]
        self.restored = False
        while self.position < len(self) * self.batch_size:
            rows = self.order[self.position : self.position + self.batch_size]
            self.position += self.batch_size
            yield torch.utils.data.default_collate([self.dataset[row] for row in rows])

    def state_dict(self) -> dict[str, Any]:
        return {"order": list(self.order), "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.position, self.restored = state["order"], state["position"], True


class StatefulData(VectorData):
    """Data module whose training loader restores itself."""

    def train_dataloader(self) -> Any:
        return StatefulLoader(Vectors(self.size), self.batch_size)


class AutoEncoder(L.LightningModule):
    """Autoencoder of vectors (B, 8), with dropout; the batches are dicts."""

    def __init__(self, dim: int = 4, lr: float = 1e-3) -> None:
        super().__init__()
        self.lr = lr
        self.encoder = nn.Sequential(nn.Linear(FEATURES, dim), nn.ReLU(), nn.Dropout(0.1))
        self.decoder = nn.Linear(dim, FEATURES)
        self.example_input_array = torch.zeros(2, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.decoder(self.encoder(x))
        return outputs

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return F.mse_loss(self(batch["x"]), batch["x"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), batch_size=len(batch["x"]))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch), batch_size=len(batch["x"]))

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        return {"code": self.encoder(batch["x"]), "sum": batch["sum"]}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.lr)


class FileReader(AutoEncoder):
    """Autoencoder that predicts from text files of eight numbers."""

    def preprocess(self, source: Any) -> Tensor:
        return torch.tensor([float(word) for word in Path(source).read_text().split()])

    def decode(self, outputs: Tensor) -> dict[str, Any]:
        return {"largest": int(outputs.argmax()), "outputs": outputs}


class GAN(L.LightningModule):
    """Generative adversarial network with manual optimization of two optimizers."""

    def __init__(self, latent: int = 4, lr: float = 2e-4) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.latent, self.lr = latent, lr
        self.generator = nn.Sequential(nn.Linear(latent, 16), nn.ReLU(), nn.Linear(16, FEATURES))
        self.critic = nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, 1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        of_generator, of_critic = self.optimizers()
        fake = self.generator(torch.randn(len(batch["x"]), self.latent))
        critic_loss = (
            F.softplus(-self.critic(batch["x"])).mean() + F.softplus(self.critic(fake.detach())).mean()
        )
        of_critic.zero_grad()
        self.manual_backward(critic_loss)
        of_critic.step()
        generator_loss = F.softplus(-self.critic(fake)).mean()
        of_generator.zero_grad()
        self.manual_backward(generator_loss)
        of_generator.step()
        self.log_dict({"generator_loss": generator_loss, "critic_loss": critic_loss}, prog_bar=True)

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.Adam(self.generator.parameters(), self.lr),
            torch.optim.Adam(self.critic.parameters(), self.lr),
        )


class SilentModule(AutoEncoder):
    """Module whose metric names are not literals in its source."""

    NAMES = ("fit", "check")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log(f"{self.NAMES[0]}_loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log(f"{self.NAMES[1]}_loss", self.loss(batch))
