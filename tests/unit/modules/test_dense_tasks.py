"""Tasks without one class per image: autoencoders, segmentation and contrastive learning."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score
from sklearn.neighbors import KNeighborsClassifier
from small_training import make_data, make_trainer
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from project.datamodules.masks import DigitMasks, ImageMasks
from project.errors import DataError, InputError
from project.modules import autoencoder, contrastive
from project.modules.networks.autoencoder import Autoencoder, LatentSample, VariationalAutoencoder
from project.modules.networks.resnet import ResNet
from project.modules.networks.unet import UNet
from project.modules.probes import knn_predictions, linear_predictions
from project.modules.segmentation import PixelCrossEntropy, Segmenter
from project.modules.views import RandomViews

ADAM = partial(torch.optim.Adam, lr=0.003)


def make_vae() -> autoencoder.VariationalAutoencoderModule:
    torch.manual_seed(0)
    return autoencoder.VariationalAutoencoderModule(
        VariationalAutoencoder((1, 8, 8), latent_dim=3, channels=(4, 8)), ADAM
    )


def make_contrastive() -> contrastive.ContrastiveModule:
    torch.manual_seed(0)
    network = ResNet((1, 8, 8), 3, depth=8, width=4)
    return contrastive.ContrastiveModule(network, ADAM, projection_dim=5, probe_images=40)


def make_segmenter() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(UNet((1, 56, 56), 11, width=2, depth=2), ADAM, num_classes=11)


def make_masks() -> DigitMasks:
    return DigitMasks(input_shape=(1, 56, 56), count=40, batch_size=4, flip_prob=0.5, crop_scale=0.6)


MAKERS: dict[str, tuple[Any, Any]] = {
    "vae": (make_vae, make_data),
    "contrastive": (make_contrastive, make_data),
    "segmentation": (make_segmenter, make_masks),
}


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    assert [name for (name, left), (_, right) in pairs if not torch.equal(left, right)] == []


def test_kl_divergence_is_that_of_torch_distributions() -> None:
    mean, log_variance = torch.randn(6, 4), torch.randn(6, 4)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(autoencoder.kl_divergence(mean, log_variance), expected)


def test_negative_elbo_is_that_of_torch_distributions() -> None:
    logits, targets = torch.randn(5, 1, 4, 4), torch.rand(5, 1, 4, 4).round()
    mean, log_variance = torch.randn(5, 2), torch.randn(5, 2)
    found = autoencoder.NegativeELBO("bce", beta=2.0)(LatentSample(logits, mean, log_variance), targets)
    likelihood = torch.distributions.Bernoulli(logits=logits).log_prob(targets).sum((1, 2, 3))
    divergence = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(found, (2 * divergence - likelihood).mean())
    found = autoencoder.NegativeELBO("mse", beta=0.0)(LatentSample(logits, mean, log_variance), targets)
    constant = 16 * 0.5 * np.log(2 * np.pi)
    expected = -Normal(logits, 1.0).log_prob(targets).sum((1, 2, 3)).mean() - constant
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 7, 13)])
def test_networks_return_the_shape_of_the_images(shape: tuple[int, int, int]) -> None:
    images = torch.randn(2, *shape)
    assert Autoencoder(shape, channels=(4, 6)).eval()(images).shape == images.shape
    network = VariationalAutoencoder(shape, latent_dim=5, channels=(4,)).eval()
    assert network(images).reconstructions.shape == images.shape
    assert network(images).mean.shape == (2, 5)
    assert UNet(shape, 4, width=2, depth=2).eval()(images).shape == (2, 4, *shape[1:])


def test_vae_samples_by_reparametrization() -> None:
    network = VariationalAutoencoder((1, 8, 8), latent_dim=3, channels=(4,))
    images = torch.randn(2, 1, 8, 8)
    torch.manual_seed(5)
    found = network(images)
    torch.manual_seed(5)
    latent = found.mean + (0.5 * found.log_variance).exp() * torch.randn(2, 3)
    torch.testing.assert_close(found.reconstructions, network.decoder(latent))
    torch.testing.assert_close(network.eval()(images).reconstructions, network.decoder(found.mean))


def test_binary_cross_entropy_sees_pixels_and_squared_error_normalized_images(tmp_path: Path) -> None:
    data = make_data()
    for kind in ("mse", "bce"):
        network = Autoencoder((1, 8, 8), latent_dim=4, channels=(4,))
        module = autoencoder.AutoencoderModule(network, ADAM, reconstruction=kind)
        trainer = make_trainer(tmp_path, max_epochs=1)
        trainer.fit(module, data)
        total, count = 0.0, 0
        network.eval()
        for images, _ in data.val_dataloader():
            with torch.no_grad():
                outputs = network(images)
            pixels = images * data.std[0] + data.mean[0]
            per_pixel = (
                (outputs - images) ** 2
                if kind == "mse"
                else F.binary_cross_entropy(outputs.sigmoid(), pixels.clamp(0, 1), reduction="none")
            )
            total, count = total + float(per_pixel.sum()), count + per_pixel.numel()
        assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(total / count, rel=1e-4)


def test_networks_of_another_task_are_refused(tmp_path: Path) -> None:
    classifier = ResNet((1, 8, 8), 3, depth=8, width=4)
    trainer = make_trainer(tmp_path)
    with pytest.raises(
        InputError, match=r"not reconstructions \(expected .*\[16, 1, 8, 8\], got .*\[16, 3\]"
    ):
        trainer.fit(autoencoder.AutoencoderModule(classifier, ADAM), make_data())
    plain = Autoencoder((1, 8, 8), channels=(4,))
    with pytest.raises(InputError, match=r"expected a LatentSample, got .*set model=vae"):
        make_trainer(tmp_path).fit(autoencoder.VariationalAutoencoderModule(plain, ADAM), make_data())
    with pytest.raises(InputError, match=r"targets are not masks .*set data=image_masks"):
        make_trainer(tmp_path).fit(Segmenter(classifier, ADAM, num_classes=3), make_data())
    network = ResNet((1, 56, 56), 11, depth=8, width=2)
    with pytest.raises(InputError, match=r"not logits of pixels .*set model=unet"):
        make_trainer(tmp_path).fit(Segmenter(network, ADAM, num_classes=11), make_masks())
    with pytest.raises(InputError, match="no linear layer to remove"):
        contrastive.ContrastiveModule(nn.Conv2d(1, 2, 3), ADAM)
    with pytest.raises(InputError, match="expected an ImageDataModule, got DigitMasks"):
        make_trainer(tmp_path).fit(make_contrastive(), make_masks())


def test_pixel_loss_is_cross_entropy_without_unlabeled_pixels() -> None:
    logits, targets = torch.randn(3, 4, 5, 6), torch.randint(4, (3, 5, 6))
    loss = PixelCrossEntropy()
    torch.testing.assert_close(loss(logits, targets), F.cross_entropy(logits, targets))
    targets[0, :2], targets[2] = 255, 255
    first = F.cross_entropy(logits[:1, :, 2:], targets[:1, 2:])
    expected = (first + F.cross_entropy(logits[1:2], targets[1:2])) / 3  # the third image has no labels
    torch.testing.assert_close(loss(logits, targets), expected)


def test_mean_intersection_over_union_is_that_of_scikit_learn(tmp_path: Path) -> None:
    module, data = make_segmenter(), make_masks()
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    module.eval()
    labels, predictions = [], []
    for images, masks in data.test_dataloader():
        with torch.no_grad():
            predictions.append(module(images).argmax(1).flatten())
        labels.append(masks.flatten())
    expected = jaccard_score(torch.cat(labels), torch.cat(predictions), average="macro")
    assert float(trainer.callback_metrics["test/miou"]) == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def mask_folder(tmp_path: Path) -> Path:
    """Ten images 20×16 whose mask is 1 where the image is bright."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    draws = np.random.default_rng(0)
    for number in range(10):
        pixels = draws.integers(0, 2, (20, 16), dtype=np.uint8)
        Image.fromarray(np.stack([pixels * 255] * 3, 2)).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(pixels).save(tmp_path / "masks" / f"{number}.png")
    return tmp_path


def test_image_and_mask_are_augmented_together(mask_folder: Path) -> None:
    data = ImageMasks(
        path=str(mask_folder), input_shape=(3, 20, 16), num_classes=2, batch_size=7, flip_prob=0.5
    )
    data.setup("fit")
    torch.manual_seed(0)
    plain = data.splits["train"].masks[data.splits["train"].rows]
    ((images, masks),) = data.train_dataloader()
    assert images.shape == (7, 3, 20, 16)
    assert torch.equal((images[:, 0] > 0).long(), masks)
    known = {tuple(mask.flatten().tolist()) for mask in plain}
    flipped = [tuple(mask.flatten().tolist()) not in known for mask in masks]
    assert 0 < sum(flipped) < 7


def test_wrong_masks_are_named(mask_folder: Path) -> None:
    options: dict[str, Any] = {"path": str(mask_folder), "input_shape": (3, 20, 16), "num_classes": 2}
    Image.fromarray(np.full((20, 16), 7, np.uint8)).save(mask_folder / "masks" / "3.png")
    with pytest.raises(
        DataError, match=r"data.num_classes=2: mask 3.png has class index 7 \(expected 0 to 1"
    ):
        ImageMasks(**options).setup("fit")
    ImageMasks(**options, ignore_index=7).setup("fit")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(mask_folder / "masks" / "3.png")
    with pytest.raises(DataError, match=r"3.png does not fit its image \(expected 20×16"):
        ImageMasks(**options).setup("fit")
    (mask_folder / "masks" / "3.png").unlink()
    with pytest.raises(InputError, match=r"3.png has no mask \(1 of 10 images\)"):
        ImageMasks(**options).setup("fit")
    with pytest.raises(InputError, match="no folder images"):
        ImageMasks(**(options | {"path": str(mask_folder / "masks")})).setup("fit")


def test_contrastive_loss_is_that_of_a_loop() -> None:
    projections, temperature = torch.randn(10, 4).double(), 0.3
    found = contrastive.NTXent(temperature)(projections)
    vectors = projections.float().double().numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    losses = []
    for one in range(10):
        partner = one + 5 if one < 5 else one - 5
        scores = {
            other: np.exp(vectors[one] @ vectors[other] / temperature) for other in range(10) if other != one
        }
        losses.append(-np.log(scores[partner] / sum(scores.values())))
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-5)


def test_probes_are_those_of_scikit_learn() -> None:
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 3, 300)
    features = draws.normal(size=(300, 5)) + np.eye(5)[labels] * 1.5
    bank, queries = torch.from_numpy(features[:200]).float(), torch.from_numpy(features[200:]).float()
    known = torch.from_numpy(labels[:200])
    knn = KNeighborsClassifier(20, metric="cosine", algorithm="brute").fit(bank, known)
    assert knn_predictions(bank, known, queries, 3).tolist() == knn.predict(queries).tolist()
    scaled = (bank - bank.mean(0)) / bank.std(0), (queries - bank.mean(0)) / bank.std(0)
    linear = LogisticRegression(C=1 / (1e-3 * 200), max_iter=1000, tol=1e-8).fit(scaled[0], known)
    found = linear_predictions(bank, known, queries, 3)
    assert (found.numpy() == linear.predict(scaled[1])).mean() >= 0.99  # solvers differ at the boundary


def test_views_differ_and_stay_in_range() -> None:
    images, draws = torch.rand(6, 3, 12, 12), torch.Generator().manual_seed(0)
    views = RandomViews()
    first, second = views(images, draws), views(images, draws)
    assert first.shape == images.shape
    assert not torch.equal(first, second)
    assert 0 <= float(first.min()) <= float(first.max()) <= 1
    kept = RandomViews(crop_scale=1.0, flip_prob=0.0, color_jitter=0.0, grayscale_prob=0.0)
    torch.testing.assert_close(kept(images), images)
    flipped = RandomViews(crop_scale=1.0, flip_prob=1.0, color_jitter=0.0, grayscale_prob=0.0)
    torch.testing.assert_close(flipped(images), images.flip(-1))
    gray = RandomViews(crop_scale=1.0, flip_prob=0.0, color_jitter=0.0, grayscale_prob=1.0)(images)
    assert torch.equal(gray[:, 0], gray[:, 2])


@pytest.mark.slow
@pytest.mark.parametrize("task", MAKERS)
def test_batched_hooks_and_resume_are_bit_identical(tmp_path: Path, task: str) -> None:
    make, data = MAKERS[task]
    plain, batched, stopped, resumed = make(), make(), make(), make()
    trainers = [
        make_trainer(tmp_path / str(number), batches_per_hook=number, enable_checkpointing=False)
        for number in (1, 64)
    ]
    trainers[0].fit(plain, data())
    trainers[1].fit(batched, data())
    assert_same_weights(plain, batched)
    keepers = [ModelCheckpoint(tmp_path, filename="mid", every_n_train_steps=9) for _ in range(2)]
    first = make_trainer(tmp_path / "stopped", keepers[:1], limit_val_batches=0)
    first.fit(stopped, data())
    assert first.num_training_batches == 7  # the checkpoint lies within the second epoch
    torch.manual_seed(99)
    last = make_trainer(tmp_path / "resumed", keepers[1:])
    last.fit(resumed, data(), ckpt_path=tmp_path / "mid.ckpt", weights_only=True)
    assert_same_weights(plain, resumed)
    for name, value in trainers[0].callback_metrics.items():
        assert torch.equal(value, last.callback_metrics[name]), name


class ImageLogger:
    """Stand-in for a logger that records the images it gets."""

    def __init__(self) -> None:
        self.images: dict[str, Any] = {}

    def log_image(self, tag: str, image: Any, step: int) -> None:
        self.images[tag] = image


def test_reconstructions_and_samples_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from project.loggers.csv import MetricsCSV

    logger, seen = MetricsCSV(str(tmp_path / "metrics.csv")), ImageLogger()
    monkeypatch.setattr(logger, "log_image", seen.log_image, raising=False)
    module, data = make_vae(), make_data()
    trainer = make_trainer(tmp_path, logger=logger, max_epochs=1)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert set(seen.images) == {"val/reconstructions", "test/reconstructions", "test/samples"}
    assert all(np.asarray(image).std() > 0 for image in seen.images.values())
