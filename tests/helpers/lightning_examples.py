"""Lightning modules and data modules of the kinds that public tutorials show, each trained unchanged.

Each uses the interfaces of its kind: several optimizers, own callbacks and metrics, dict batches, plain
`self.log`. The networks are small and the data random.
"""

import copy
import math

import lightning as L
import torch
import torchmetrics
import torchvision
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, random_split

CONFIG_TARGETS = (
    "DigitClassifier",
    "LitAutoEncoder",
    "LitVAE",
    "LitGAN",
    "LanguageModel",
    "FineTuned",
    "Siamese",
    "Forecaster",
    "SuperResolution",
    "BootstrapYourOwnLatent",
    "Segmenter",
    "PolicyGradient",
    "SemiSupervised",
    "RandomDigits",
    "TokenData",
    "PairData",
    "SeriesData",
    "LowHighData",
    "MaskData",
)


class RandomDigits(L.LightningDataModule):
    """Images (1, 28, 28) and classes, split by `random_split` in `setup`."""

    def __init__(self, data_dir="./", batch_size=16):
        super().__init__()
        self.save_hyperparameters()

    def prepare_data(self):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(96, 1, 28, 28, generator=generator)
        self.labels = torch.randint(10, (96,), generator=generator)

    def setup(self, stage):
        full = TensorDataset(self.images, self.labels)
        if stage == "fit":
            self.train_set, self.val_set = random_split(full, [64, 32], torch.Generator().manual_seed(42))
        if stage == "test":
            self.test_set = full

    def train_dataloader(self):
        return DataLoader(self.train_set, batch_size=self.hparams.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val_set, batch_size=self.hparams.batch_size)

    def test_dataloader(self):
        return DataLoader(self.test_set, batch_size=self.hparams.batch_size)


class DigitClassifier(L.LightningModule):
    """Classifier with torchmetrics as attributes, logged as objects."""

    def __init__(self, hidden_dim=32, learning_rate=1e-3):
        super().__init__()
        self.save_hyperparameters()
        self.example_input_array = torch.zeros(1, 1, 28, 28)
        self.l1 = nn.Linear(28 * 28, hidden_dim)
        self.l2 = nn.Linear(hidden_dim, 10)
        self.val_acc = torchmetrics.Accuracy(task="multiclass", num_classes=10)
        self.test_acc = torchmetrics.Accuracy(task="multiclass", num_classes=10)

    def forward(self, x):
        return self.l2(torch.relu(self.l1(x.flatten(1))))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.val_acc(logits, y)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", self.val_acc, on_step=False, on_epoch=True)

    def test_step(self, batch, batch_idx):
        x, y = batch
        self.test_acc.update(self(x), y)

    def on_test_epoch_end(self):
        self.log("test_acc", self.test_acc.compute())
        self.test_acc.reset()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.learning_rate)


class LitAutoEncoder(L.LightningModule):
    """Autoencoder with a shared step and an exponential schedule in two lists."""

    def __init__(self, hidden_dim: int = 16):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 3))
        self.decoder = nn.Sequential(nn.Linear(3, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 784))

    def forward(self, x):
        return self.encoder(x.view(x.size(0), -1))

    def training_step(self, batch, batch_idx):
        return self._common_step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self._common_step(batch, "val")

    def test_step(self, batch, batch_idx):
        self._common_step(batch, "test")

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return self(batch[0])

    def _common_step(self, batch, stage):
        x = batch[0].view(len(batch[0]), -1)
        loss = F.mse_loss(self.decoder(self.encoder(x)), x)
        self.log(f"{stage}_loss", loss, on_step=True)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)]


class LitVAE(L.LightningModule):
    """Variational autoencoder: `log_dict`, draws in training and validation."""

    def __init__(self, latent_dim=4, kl_coeff=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU())
        self.fc_mu, self.fc_var = nn.Linear(32, latent_dim), nn.Linear(32, latent_dim)
        self.decoder = nn.Sequential(nn.Linear(latent_dim, 32), nn.ReLU(), nn.Linear(32, 784), nn.Sigmoid())

    def step(self, batch):
        x, _ = batch
        hidden = self.encoder(x)
        mu, log_var = self.fc_mu(hidden), self.fc_var(hidden)
        q = torch.distributions.Normal(mu, torch.exp(log_var / 2))
        p = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
        recon = F.mse_loss(self.decoder(q.rsample()), x.flatten(1))
        kl = torch.distributions.kl_divergence(q, p).mean() * self.hparams.kl_coeff
        return recon + kl, {"recon_loss": recon, "kl": kl, "loss": recon + kl}

    def training_step(self, batch, batch_idx):
        loss, logs = self.step(batch)
        self.log_dict({f"train_{k}": v for k, v in logs.items()}, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch, batch_idx):
        loss, logs = self.step(batch)
        self.log_dict({f"val_{k}": v for k, v in logs.items()})
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class LitGAN(L.LightningModule):
    """GAN with manual optimization, toggled optimizers, and image grids for the logger."""

    def __init__(self, latent_dim: int = 8, lr: float = 2e-4, b1: float = 0.5, b2: float = 0.999):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(latent_dim, 32), nn.BatchNorm1d(32), nn.LeakyReLU(0.2), nn.Linear(32, 784), nn.Tanh()
        )
        self.discriminator = nn.Sequential(nn.Linear(784, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
        self.register_buffer("validation_z", torch.randn(4, latent_dim))

    def forward(self, z):
        return self.generator(z)

    def adversarial_loss(self, y_hat, y):
        return F.binary_cross_entropy_with_logits(y_hat, y)

    def training_step(self, batch):
        imgs, _ = batch
        imgs = imgs.flatten(1)
        optimizer_g, optimizer_d = self.optimizers()
        z = torch.randn(imgs.shape[0], self.hparams.latent_dim).type_as(imgs)
        valid, fake = torch.ones(len(imgs), 1).type_as(imgs), torch.zeros(len(imgs), 1).type_as(imgs)

        self.toggle_optimizer(optimizer_g)
        g_loss = self.adversarial_loss(self.discriminator(self(z)), valid)
        self.log("g_loss", g_loss, prog_bar=True)
        self.manual_backward(g_loss)
        optimizer_g.step()
        optimizer_g.zero_grad()
        self.untoggle_optimizer(optimizer_g)

        self.toggle_optimizer(optimizer_d)
        real_loss = self.adversarial_loss(self.discriminator(imgs), valid)
        fake_loss = self.adversarial_loss(self.discriminator(self(z).detach()), fake)
        d_loss = (real_loss + fake_loss) / 2
        self.log("d_loss", d_loss, prog_bar=True)
        self.manual_backward(d_loss)
        optimizer_d.step()
        optimizer_d.zero_grad()
        self.untoggle_optimizer(optimizer_d)

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        sample_imgs = self(self.validation_z.type_as(self.generator[0].weight))
        grid = torchvision.utils.make_grid(sample_imgs.view(-1, 1, 28, 28))
        for logger in self.loggers:
            if hasattr(logger.experiment, "add_image"):
                logger.experiment.add_image("validation/generated_images", grid, self.current_epoch)

    def configure_optimizers(self):
        betas = (self.hparams.b1, self.hparams.b2)
        opt_g = torch.optim.Adam(self.generator.parameters(), lr=self.hparams.lr, betas=betas)
        opt_d = torch.optim.Adam(self.discriminator.parameters(), lr=self.hparams.lr, betas=betas)
        return [opt_g, opt_d], []


class TokenData(L.LightningDataModule):
    """Sequences of token indices; no test split."""

    def __init__(self, vocab_size=20, length=12, batch_size=8):
        super().__init__()
        tokens = torch.randint(vocab_size, (64, length + 1), generator=torch.Generator().manual_seed(0))
        self.batch_size, self.sets = batch_size, random_split(TensorDataset(tokens), [48, 16])

    def train_dataloader(self):
        return DataLoader(self.sets[0], self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self):
        return DataLoader(self.sets[1], self.batch_size)


class LanguageModel(L.LightningModule):
    """Causal transformer with warm-up per step, and gradients clipped in `configure_gradient_clipping`."""

    def __init__(self, vocab_size=20, dim=16, warmup=4):
        super().__init__()
        self.save_hyperparameters()
        self.embedding, self.position = nn.Embedding(vocab_size, dim), nn.Embedding(64, dim)
        layer = nn.TransformerEncoderLayer(dim, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(dim, vocab_size)

    def forward(self, tokens):
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        hidden = self.embedding(tokens) + self.position(torch.arange(length, device=tokens.device))
        return self.head(self.encoder(hidden, mask=mask, is_causal=True))

    def loss(self, batch):
        (tokens,) = batch
        return F.cross_entropy(self(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/perplexity", loss.detach().exp())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/perplexity", self.loss(batch).exp(), prog_bar=True)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_gradients(optimizer, gradient_clip_val=0.25, gradient_clip_algorithm="norm")

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        warmup = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / self.hparams.warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}


class MilestonesFinetuning(BaseFinetuning):
    """Unfreezes the backbone's last stage at one epoch and the rest at another."""

    def __init__(self, milestones=(1, 2), train_bn=False):
        super().__init__()
        self.milestones, self.train_bn = milestones, train_bn

    def freeze_before_training(self, pl_module):
        self.freeze(modules=pl_module.feature_extractor, train_bn=self.train_bn)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == self.milestones[0]:
            self.unfreeze_and_add_param_group(
                modules=pl_module.feature_extractor[-1:], optimizer=optimizer, train_bn=self.train_bn
            )
        elif epoch == self.milestones[1]:
            self.unfreeze_and_add_param_group(
                modules=pl_module.feature_extractor[:-1], optimizer=optimizer, train_bn=self.train_bn
            )


class FineTuned(L.LightningModule):
    """Backbone with a new head: a `BaseFinetuning` callback of its own, and milestones for the rate."""

    def __init__(self, lr=1e-2, milestones=(1, 2)):
        super().__init__()
        self.save_hyperparameters()
        self.feature_extractor = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU()),
            nn.Sequential(
                nn.Conv2d(4, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
            ),
        )
        self.fc = nn.Linear(8, 10)
        self.train_acc = torchmetrics.Accuracy(task="multiclass", num_classes=10)
        self.valid_acc = torchmetrics.Accuracy(task="multiclass", num_classes=10)

    def forward(self, x):
        return self.fc(self.feature_extractor(x).squeeze(-1).squeeze(-1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("train_acc", self.train_acc(logits, y), prog_bar=True)
        return F.cross_entropy(logits, y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", self.valid_acc(self(x), y), prog_bar=True)

    def configure_callbacks(self):
        return [MilestonesFinetuning(self.hparams.milestones)]

    def configure_optimizers(self):
        trainable = filter(lambda parameter: parameter.requires_grad, self.parameters())
        optimizer = torch.optim.Adam(trainable, lr=self.hparams.lr)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(self.hparams.milestones), gamma=0.5)
        return [optimizer], [scheduler]


class Pairs(Dataset):
    """Pairs of vectors, and 1 for pairs of one class or -1."""

    def __init__(self, number, seed):
        generator = torch.Generator().manual_seed(seed)
        self.classes = torch.randint(2, (2, number), generator=generator)
        self.vectors = self.classes[..., None] + 0.1 * torch.randn(2, number, 5, generator=generator)

    def __len__(self):
        return self.vectors.shape[1]

    def __getitem__(self, index):
        first, second = self.classes[:, index]
        return (self.vectors[0, index], self.vectors[1, index]), (1.0 if first == second else -1.0)


class PairData(L.LightningDataModule):
    """Batches of nested tuples, read by worker processes."""

    def __init__(self, batch_size=8, num_workers=1):
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers

    def train_dataloader(self):
        return DataLoader(Pairs(48, 0), self.batch_size, shuffle=True, num_workers=self.num_workers)

    def val_dataloader(self):
        return DataLoader(Pairs(16, 1), self.batch_size, num_workers=self.num_workers)


class Siamese(L.LightningModule):
    """Two branches with shared weights; outputs of an epoch are collected in a list."""

    def __init__(self, margin=0.2):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 4))
        self.criterion = nn.CosineEmbeddingLoss(margin)
        self.validation_step_outputs = []

    def forward(self, pair):
        return self.net(pair[0]), self.net(pair[1])

    def training_step(self, batch, batch_idx):
        pair, same = batch
        return {"loss": self.criterion(*self(pair), same)}

    def validation_step(self, batch, batch_idx):
        pair, same = batch
        self.validation_step_outputs.append(self.criterion(*self(pair), same))

    def on_validation_epoch_end(self):
        self.log("valid_loss", torch.stack(self.validation_step_outputs).mean())
        self.validation_step_outputs.clear()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, nesterov=True)


class Series(Dataset):
    """Windows of a sine as dicts."""

    def __len__(self):
        return 48

    def __getitem__(self, index):
        wave = torch.sin(torch.arange(index, index + 13) * 0.3)
        return {"history": wave[:12, None], "target": wave[12:], "name": f"window {index}"}


class SeriesData(L.LightningDataModule):
    """Dict batches with texts."""

    def __init__(self, batch_size: int = 8):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return DataLoader(Series(), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(Series(), batch_size=self.batch_size)

    def test_dataloader(self):
        return self.val_dataloader()


class Forecaster(L.LightningModule):
    """LSTM whose learning rate falls on a plateau of a logged metric."""

    def __init__(self, hidden_size: int = 8, lr: float = 1e-2):
        super().__init__()
        self.save_hyperparameters()
        self.lstm = nn.LSTM(1, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, history):
        return self.head(self.lstm(history)[0][:, -1])

    def shared_step(self, batch, split):
        loss = F.smooth_l1_loss(self(batch["history"]), batch["target"])
        self.log(f"{split}_loss", loss, on_epoch=True, batch_size=len(batch["name"]))
        return loss

    def training_step(self, batch, batch_idx):
        return self.shared_step(batch, "train")

    def validation_step(self, batch, batch_idx):
        return self.shared_step(batch, "val")

    def test_step(self, batch, batch_idx):
        return self.shared_step(batch, "test")

    def configure_optimizers(self):
        optimizer = torch.optim.RMSprop(self.parameters(), lr=self.hparams.lr)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class LowHighData(L.LightningDataModule):
    """Images and their halved copies, of two validation sets."""

    def loader(self, number, seed, **options):
        high = torch.rand(number, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        return DataLoader(TensorDataset(F.avg_pool2d(high, 2), high), batch_size=8, **options)

    def train_dataloader(self):
        return self.loader(32, 0, shuffle=True)

    def val_dataloader(self):
        return [self.loader(16, 1), self.loader(8, 2)]


class SuperResolution(L.LightningModule):
    """Sub-pixel convolution; a `MetricCollection` of the first of two validation sets."""

    def __init__(self, upscale_factor=2, lr=1e-2):
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(8, 3 * upscale_factor**2, 3, padding=1),
            nn.PixelShuffle(upscale_factor),
        )
        self.metrics = torchmetrics.MetricCollection(
            {
                "psnr": torchmetrics.image.PeakSignalNoiseRatio(data_range=1.0),
                "mse": torchmetrics.MeanSquaredError(),
            },
            prefix="val/",
        )

    def forward(self, low):
        return self.net(low)

    def training_step(self, batch, batch_idx):
        low, high = batch
        loss = F.l1_loss(self(low), high)
        self.log("train/l1", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        low, high = batch
        self.log("val/l1", F.l1_loss(self(low), high))
        if dataloader_idx == 0:
            self.metrics.update(self(low), high)

    def on_validation_epoch_end(self):
        self.log_dict(self.metrics.compute())
        self.metrics.reset()

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        steps = self.trainer.estimated_stepping_batches
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.lr, total_steps=int(steps))
        return [optimizer], [{"scheduler": cycle, "interval": "step"}]


class BootstrapYourOwnLatent(L.LightningModule):
    """Self-supervised: two views of an image, and a target network as a moving average of the online one."""

    def __init__(self, base_momentum=0.9):
        super().__init__()
        self.save_hyperparameters()
        self.online = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.predictor = nn.Linear(16, 16)
        self.target = copy.deepcopy(self.online)
        for parameter in self.target.parameters():
            parameter.requires_grad = False
        self.momentum = base_momentum

    def forward(self, x):
        return self.online(x)

    def views(self, images):
        return images + 0.1 * torch.randn_like(images), images.flip(-1)

    def training_step(self, batch, batch_idx):
        first, second = self.views(batch[0])
        loss = torch.zeros((), device=self.device)
        for one, other in ((first, second), (second, first)):
            with torch.no_grad():
                goal = self.target(other)
            loss = loss - F.cosine_similarity(self.predictor(self.online(one)), goal).mean()
        self.log("train_loss", loss)
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        steps = self.trainer.max_epochs * self.trainer.num_training_batches
        progress = math.cos(math.pi * self.trainer.global_step / steps) + 1
        self.momentum = 1 - (1 - self.hparams.base_momentum) * progress / 2
        for online, target in zip(self.online.parameters(), self.target.parameters(), strict=True):
            target.data.mul_(self.momentum).add_(online.data, alpha=1 - self.momentum)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)]


class MaskData(L.LightningDataModule):
    """Images (3, 16, 16) and masks (16, 16)."""

    def loader(self, seed, **options):
        images = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        return DataLoader(TensorDataset(images, (images.mean(1) > 0.5).long()), batch_size=8, **options)

    def train_dataloader(self):
        return self.loader(0, shuffle=True)

    def val_dataloader(self):
        return self.loader(1)

    def predict_dataloader(self):
        return self.loader(2)


class Segmenter(L.LightningModule):
    """Network per pixel; the Jaccard index in a `ModuleDict` by split."""

    def __init__(self, num_classes=2):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, num_classes, 1))
        index = torchmetrics.JaccardIndex(task="multiclass", num_classes=num_classes)
        self.scores = nn.ModuleDict({f"{split}_iou": index.clone() for split in ("train", "val")})

    def step(self, batch, split):
        images, masks = batch
        logits = self.net(images)
        self.scores[f"{split}_iou"](logits, masks)
        self.log(f"{split}_iou", self.scores[f"{split}_iou"], on_step=False, on_epoch=True)
        return F.cross_entropy(logits, masks)

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.step(batch, "val")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Episodes(IterableDataset):
    """States, actions and returns that a policy collects in a random environment."""

    def __init__(self, collect, num_steps):
        self.collect = collect
        self.num_steps = num_steps

    def __iter__(self):
        for _ in range(self.num_steps):
            yield self.collect()


class PolicyGradient(L.LightningModule):
    """REINFORCE with an environment as attribute, and a loader of episodes of the current policy."""

    def __init__(self, num_states=4, num_actions=2):
        super().__init__()
        self.policy = nn.Linear(num_states, num_actions)
        self.best_actions = torch.arange(num_states) % num_actions

    @torch.no_grad()
    def play(self):
        state = F.one_hot(torch.randint(4, ()), 4).float()
        action = torch.distributions.Categorical(logits=self.policy(state)).sample()
        return state, action, (action == self.best_actions[state.argmax()]).float()

    def train_dataloader(self):
        return DataLoader(Episodes(self.play, num_steps=64), batch_size=16)

    def training_step(self, batch, batch_idx):
        states, actions, rewards = batch
        chances = torch.distributions.Categorical(logits=self.policy(states)).log_prob(actions)
        self.log("reward", rewards.mean(), prog_bar=True, on_step=False, on_epoch=True)
        return -(chances * (rewards - rewards.mean())).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


class SemiSupervised(L.LightningModule):
    """Pseudo-labels: two loaders of different lengths in a `CombinedLoader`, a loader for validation."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 3)

    def loader(self, number, seed, **options):
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(number, 8, generator=generator)
        return DataLoader(TensorDataset(features, features[:, :3].argmax(1)), batch_size=8, **options)

    def train_dataloader(self):
        loaders = {"labelled": self.loader(16, 0, shuffle=True), "other": self.loader(64, 1)}
        return CombinedLoader(loaders, mode="max_size_cycle")

    def val_dataloader(self):
        return self.loader(32, 2)

    def training_step(self, batch, batch_idx):
        features, labels = batch["labelled"]
        others, _ = batch["other"]
        logits = self.net(others)
        loss = F.cross_entropy(self.net(features), labels)
        loss = loss + 0.1 * F.cross_entropy(logits, logits.detach().argmax(1))
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        features, labels = batch
        self.log("val_acc", (self.net(features).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
