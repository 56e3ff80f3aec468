"""Tests of airbench94's parts: whitening, Muon on filters, parameter roles, alternating flips, TTA."""

from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from project.callbacks.checkpointing import BestCheckpoint
from project.callbacks.freeze import FreezeFinishedParams
from project.datamodules.loading.augmentation import Augmentation, random_crop
from project.datamodules.synthetic import Synthetic
from project.errors import InputError
from project.modules.classifier import ImageClassifier
from project.modules.losses import CrossEntropy
from project.modules.networks.airbench import Airbench, whitening_filters
from project.modules.networks.cnn import CNN3x3
from project.modules.optim import schedules
from project.modules.optim.muon import FilterMuon, MuonSGD, orthogonalize
from project.modules.optim.parameter_groups import parameter_groups
from project.modules.optim.training_length import TrainingLength
from project.modules.tta import UNSURE_BELOW, tta_logits
from project.runtime.seeding import generator

SHAPE = (3, 12, 10)


def smooth_images(count: int = 300) -> torch.Tensor:
    """Return images (count, *SHAPE) with correlated neighboring pixels and channels, as in photographs."""
    coarse = torch.randn(count, 3, 4, 4, generator=generator(0))
    images = F.interpolate(coarse + coarse[:, :1], size=SHAPE[1:], mode="bilinear")
    return images + 0.1 * torch.randn(images.shape, generator=generator(1))


def make_network() -> Airbench:
    torch.manual_seed(0)
    return Airbench(SHAPE, 3, widths=(6, 8, 8))


def test_airbench_has_the_layers_of_the_paper() -> None:
    network = Airbench((3, 32, 32), 10)
    # 24 filters of 2×2×3 with a bias; six convolutions, each followed by offsets and frozen gains; a head.
    filters = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    trainable = 24 + filters + 2 * (64 + 256 + 256) + 256 * 10
    counts = [(p.numel(), p.requires_grad) for p in network.parameters()]
    assert sum(count for count, trains in counts if trains) == trainable
    assert sum(count for count, trains in counts if not trains) == 24 * 12 + 2 * (64 + 256 + 256)
    sides = []
    for group in network.groups:
        group.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[2]))
    network(torch.randn(2, 3, 32, 32))
    assert sides == [15, 7, 3]
    assert network.head.weight.std().item() == pytest.approx(1 / 256, rel=1e-4)
    # Convolutions are initialized to the identity, as far as they have enough filters.
    passed = network.groups[0].conv1(torch.ones(1, 24, 4, 4))[0, :24]
    torch.testing.assert_close(passed, torch.ones(24, 4, 4))


@pytest.mark.parametrize("shape", [(1, 28, 28), (4, 9, 50), (1, 5, 3)])
def test_airbench_accepts_any_image_shape(shape: tuple[int, int, int]) -> None:
    assert Airbench(shape, 7, widths=(4, 4, 4))(torch.randn(2, *shape)).shape == (2, 7)


def test_whitened_patches_are_uncorrelated_with_unit_power() -> None:
    images = smooth_images()
    filters = whitening_filters(images, 2, eps=0.0)
    outputs = F.conv2d(images, filters).transpose(0, 1).flatten(1)  # 12, N * positions
    torch.testing.assert_close(outputs @ outputs.T / outputs.shape[1], torch.eye(12), rtol=0, atol=2e-3)
    # eps reduces the power of a direction with eigenvalue λ to λ / (λ + eps).
    network = make_network()
    network.initialize(images)
    outputs = F.conv2d(images, network.whitening.weight).transpose(0, 1).flatten(1)
    power = outputs.square().mean(dim=1)
    torch.testing.assert_close(power[:12], power[12:])
    assert (power < 1.001).all()
    assert power[11] == pytest.approx(1, abs=1e-3)


def test_batched_newton_schulz_equals_one_matrix_at_a_time() -> None:
    for rows, columns in ((6, 20), (20, 6)):
        matrices = torch.randn(5, rows, columns, generator=generator(3))
        together = orthogonalize(matrices, steps=5)
        apart = torch.stack([orthogonalize(matrix, steps=5) for matrix in matrices])
        torch.testing.assert_close(together, apart)
        values = torch.linalg.svdvals(together)
        assert values.min() > 0.6, values
        assert values.max() < 1.3, values
        # Singular vectors do not change: the result is orthogonal up to its singular values.
        left, _, right = torch.linalg.svd(matrices, full_matrices=False)
        core = left.mT @ together @ right.mT
        torch.testing.assert_close(core, torch.diag_embed(core.diagonal(dim1=-2, dim2=-1)), rtol=0, atol=1e-4)


def test_filter_muon_normalizes_filters_and_takes_orthogonal_steps() -> None:
    torch.manual_seed(0)
    filters = [nn.Parameter(torch.randn(8, 4, 3, 3)) for _ in range(3)] + [nn.Parameter(torch.ones(2, 5))]
    before = [parameter.detach() * len(parameter) ** 0.5 / parameter.detach().norm() for parameter in filters]
    optimizer = FilterMuon(filters, lr=0.25, steps=8)
    for parameter in filters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for parameter, old in zip(filters[:3], before, strict=False):
        values = torch.linalg.svdvals((parameter.detach() - old).flatten(1)) / 0.25
        assert (values - 1).abs().max() < 0.35, values
    assert torch.equal(optimizer.state[filters[0]]["momentum_buffer"], filters[0].grad)


def test_filter_muon_momentum_equals_that_of_sgd() -> None:
    # Without normalization, the direction of the second step is that of the momentum buffer.
    parameter = nn.Parameter(torch.zeros(4, 6))
    optimizer = FilterMuon([parameter], lr=1.0, momentum=0.5, nesterov=True, normalize=False)
    first, second = torch.randn(2, 4, 6, generator=generator(4))
    for gradient in (first, second):
        before = parameter.detach().clone()
        parameter.grad = gradient.clone()
        optimizer.step()
    expected = orthogonalize(second + 0.5 * (0.5 * first + second), steps=3)
    torch.testing.assert_close(before - parameter.detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight_decay_norm_bias", [True, False])
@pytest.mark.parametrize("make", [make_network, lambda: CNN3x3((1, 12, 12), 3)])
def test_every_trainable_parameter_is_in_one_group(make, weight_decay_norm_bias: bool) -> None:
    network = make()
    groups = parameter_groups(network, weight_decay_norm_bias=weight_decay_norm_bias)
    for entries in (groups, MuonSGD(groups).param_groups):
        grouped = [id(parameter) for group in entries for parameter in group["params"]]
        trainable = [id(parameter) for parameter in network.parameters() if parameter.requires_grad]
        assert sorted(grouped) == sorted(trainable)
    roles = {group.get("role") for group in groups}
    named = {"whitening", "norms", "filters", "head"}
    assert roles == (named if isinstance(network, Airbench) else {None})


def test_muon_sgd_sets_lr_and_weight_decay_by_kind_of_parameter() -> None:
    groups = parameter_groups(make_network(), weight_decay_norm_bias=True)
    optimizer = MuonSGD(groups, lr=0.2, linear_lr=50.0, bias_lr=5.0, weight_decay=0.01)
    rates = {group["role"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"filters": 0.2, "whitening": 5.0, "norms": 5.0, "head": 50.0}
    decays = {group["role"]: group.get("weight_decay", 0) * group["lr"] for group in optimizer.param_groups}
    assert decays == pytest.approx({"filters": 0, "whitening": 0.01, "norms": 0.01, "head": 0.01})


def test_role_ends_lower_the_lr_of_a_role_early() -> None:
    optimizer = MuonSGD(parameter_groups(make_network(), weight_decay_norm_bias=True))
    schedule = schedules.linear(optimizer, TrainingLength(10, 5), role_ends={"whitening": 0.4})["scheduler"]
    ratios = {"whitening": [], "head": []}
    for _ in range(10):
        for group in optimizer.param_groups:
            if group["role"] in ratios:
                ratios[group["role"]].append(group["lr"] / group["initial_lr"])
        optimizer.step()
        schedule.step()
    assert ratios["head"] == pytest.approx([1 - step / 10 for step in range(10)])
    assert ratios["whitening"] == pytest.approx([1, 0.75, 0.5, 0.25] + [0] * 6)
    with pytest.raises(InputError, match=r"scheduler\.role_ends\.tail: choose from filters, whitening"):
        schedules.linear(optimizer, TrainingLength(10, 5), role_ends={"tail": 0.4})


def test_random_crop_is_a_window_of_the_reflection_padded_image() -> None:
    images = torch.rand(100, 3, 12, 10, generator=generator(0))
    cropped = random_crop(images, 2, generator(1), "reflect")
    padded = F.pad(images, (2,) * 4, mode="reflect")
    tops, lefts = torch.randint(5, (2, 100), generator=generator(1))
    for number, (top, left) in enumerate(zip(tops.tolist(), lefts.tolist(), strict=True)):
        assert torch.equal(cropped[number], padded[number, :, top : top + 12, left : left + 10])
    with pytest.raises(
        InputError, match=r"augment\.random_crop_padding=10: must be below the side of the images, 10"
    ):
        random_crop(images, 10, generator(1), "reflect")


def make_data(**options) -> Synthetic:
    settings = {
        "train_size": 110,
        "test_size": 50,
        "val_size": 10,
        "batch_size": 16,
        "noise": 0.5,
    }
    return Synthetic(input_shape=SHAPE, num_classes=3, **(settings | options))


def test_alternating_flip_flips_each_image_every_other_epoch() -> None:
    data = make_data(augment=Augmentation(3, flip_prob=0.5, flip_schedule="alternating"), seed=7)
    plain = make_data(seed=7)
    for module in (data, plain):
        module.setup("fit")
    shares = []
    previous: dict[bytes, bool] = {}
    for epoch in range(4):
        loaders = data.train_dataloader(), plain.train_dataloader()
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        mirrored = {}
        for (images, _), (originals, _) in zip(*loaders, strict=True):
            for image, original in zip(images, originals, strict=True):
                flipped = torch.equal(image, original.flip(-1))
                assert flipped != torch.equal(image, original)
                mirrored[original.numpy().tobytes()] = flipped
        assert len(mirrored) == 100
        assert all(mirrored[key] != flipped for key, flipped in previous.items())
        shares.append(sum(mirrored.values()) / 100)
        previous = mirrored
    assert 0.3 < shares[0] < 0.7


def test_tta_is_a_weighted_mean_over_augmented_copies() -> None:
    network = make_network().eval()
    images = smooth_images(5)
    padded = F.pad(images, (1,) * 4, mode="reflect")
    height, width = SHAPE[1:]
    shifted = [images, padded[..., :height, :width], padded[..., 2 : 2 + height, 2 : 2 + width]]
    with torch.no_grad():
        plain = [network(copy) for copy in shifted]
        mirrored = [network(copy.flip(-1)) for copy in shifted]
        weights = (1 / 4, 1 / 8, 1 / 8)
        six = sum(w * (a + b) for w, a, b in zip(weights, plain, mirrored, strict=True))
        assert torch.equal(tta_logits(network, images, "none"), plain[0])
        torch.testing.assert_close(tta_logits(network, images, "flip"), (plain[0] + mirrored[0]) / 2)
        torch.testing.assert_close(tta_logits(network, images, "flip_translate"), six)
    with pytest.raises(InputError, match=r"tta=five: choose from none, flip, flip_translate, selective"):
        tta_logits(network, images, "five")


def test_selective_tta_augments_unsure_images_only() -> None:
    network = make_network().eval()
    images = smooth_images(9).contiguous(memory_format=torch.channels_last)
    passes = []

    def scaled(batch: Tensor) -> Tensor:
        passes.append(len(batch))
        return network(batch) * scale

    with torch.no_grad():
        largest = network(images).topk(2).values
        gaps = largest[:, 0] - largest[:, 1]
        scale = float(UNSURE_BELOW / gaps.sort().values[3:5].mean())
        selective = tta_logits(scaled, images, "selective")
        assert passes == [9, 4, 4, 4, 4, 4]
        unsure = gaps * scale < UNSURE_BELOW
        assert torch.equal(selective[~unsure], tta_logits(scaled, images, "none")[~unsure])
        torch.testing.assert_close(selective[unsure], tta_logits(scaled, images, "flip_translate")[unsure])
        scale = 1e6
        assert torch.equal(tta_logits(scaled, images, "selective"), network(images) * scale)


def fit(
    folder: Path,
    *callbacks: L.Callback,
    resume: Path | None = None,
    end: float = 0.5,
    batch_size: int = 16,
) -> L.Trainer:
    module = ImageClassifier(
        make_network(),
        CrossEntropy(3),
        partial(MuonSGD, lr=0.1, linear_lr=0.1, bias_lr=0.5, weight_decay=0.001),
        partial(schedules.linear, role_ends={"whitening": end}),
        tta="flip_translate",
    )
    last = BestCheckpoint(
        dirpath=folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=4,
        callbacks=[last, *callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    augment = Augmentation(
        3, random_crop_padding=2, crop_mode="reflect", flip_prob=0.5, flip_schedule="alternating"
    )
    data = make_data(augment=augment, batch_size=batch_size)
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return trainer


class StopAfterSecondEpoch(L.Callback):
    """Stops at the end of the second epoch, while the schedule's length stays four epochs."""

    def on_train_epoch_end(self, trainer, module) -> None:
        if trainer.current_epoch == 1:
            trainer.should_stop = True


class WhiteningBiasRecorder(L.Callback):
    """Records for each batch if the whitening bias is trained."""

    def __init__(self) -> None:
        self.trains: list[bool] = []

    def on_train_batch_start(self, trainer, module, *args) -> None:
        self.trains.append(module.network.whitening.bias.requires_grad)


def test_finished_params_freeze_at_their_fraction_of_a_resumed_run_with_larger_steps(tmp_path: Path) -> None:
    fit(tmp_path, StopAfterSecondEpoch(), FreezeFinishedParams({"whitening": 0.75}), end=0.75)
    watch = WhiteningBiasRecorder()
    fit(
        tmp_path,
        FreezeFinishedParams({"whitening": 0.75}),
        watch,
        resume=tmp_path / "last.ckpt",
        end=0.75,
        batch_size=32,
    )
    assert watch.trains == [True] * 4 + [False] * 4


def test_freezing_finished_params_saves_gradients_and_keeps_results(tmp_path: Path) -> None:
    watch = WhiteningBiasRecorder()
    plain = fit(tmp_path / "plain").lightning_module
    resting = fit(tmp_path / "resting", FreezeFinishedParams({"whitening": 0.5}), watch).lightning_module
    assert watch.trains == [True] * 14 + [False] * 14
    assert resting.network.whitening.bias.requires_grad
    for name, value in plain.state_dict().items():
        assert torch.equal(value, resting.state_dict()[name]), name


def test_weights_are_initialized_from_images_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(tmp_path / "whole")
    sample = whole.datamodule.training_sample()
    filters = whole.lightning_module.network.whitening.weight
    assert torch.equal(filters[:12], whitening_filters(sample, 2))

    fit(tmp_path / "halves", StopAfterSecondEpoch())
    checkpoint = tmp_path / "halves" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 1

    def refuse(self, images) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(Airbench, "initialize", refuse)
    resumed = fit(tmp_path / "halves", resume=checkpoint)
    for name, value in whole.lightning_module.state_dict().items():
        assert torch.equal(value, resumed.lightning_module.state_dict()[name]), name
