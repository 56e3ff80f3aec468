"""Tests of images and training statistics in TensorBoard."""

import csv
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import Compose, read_table
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from small_training import make_data, make_module, make_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import distributed as dist
from torch import nn

from project.callbacks.predictions import (
    ImagePredictions,
    PredictionCollector,
    class_results,
    classification_report,
)
from project.callbacks.training_stats import TrainingStats
from project.callbacks.visuals import TestVisuals, penultimate_features
from project.datamodules.loading.augmentation import Augmentation
from project.datamodules.synthetic import Synthetic
from project.loggers.csv import MetricsCSV
from project.loggers.tensorboard import TensorBoard, display_name, project_embeddings
from project.loggers.tensorboard_graph import record_graph
from project.runs.hparam_diff import hyperparameters
from project.training.ddp.launch import run_ranks


def events_of(folder: Path) -> EventAccumulator:
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def text_of(events: EventAccumulator, tag: str) -> str:
    return events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode()


def test_visuals_log_test_results_training_images_and_graph(tmp_path: Path) -> None:
    board = TensorBoard(str(tmp_path))
    board.log_hyperparams({"optim.lr": 0.1})
    module, data = make_module(), make_data(augment=Augmentation(3, random_crop_padding=1, mixup=0.4))
    trainer = make_trainer(
        tmp_path, [TestVisuals(), TrainingStats()], logger=board, enable_checkpointing=False
    )
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    board.finalize("success")
    events = events_of(tmp_path)
    tags = events.Tags()
    assert tags["images"] == ["visuals/train/images", "visuals/test/confusion", "visuals/test/mistakes"]
    assert set(tags["scalars"]) == {
        *("train/loss", "train/acc", "val/loss", "val/acc"),
        *("vitals/lr", "vitals/grad_norm", "vitals/speed_images_per_s", "vitals/speed_data_wait_fraction"),
    }
    assert "custom_scalars__config__" in tags["tensors"]
    logits = torch.cat([module.eval()(images) for images, _ in data.test_dataloader()])
    labels = torch.cat([labels for _, labels in data.test_dataloader()])
    correct = int((logits.argmax(1) == labels).sum())
    assert f"{correct} of 50 images correct" in text_of(events, "test/classes")
    graph = events.Graph()
    assert {"images", "body/Conv2d_0/conv2d", "logits"} <= {node.name for node in graph.node}
    with (tmp_path / "projector" / "test" / "metadata.tsv").open(newline="") as stream:
        known = list(csv.DictReader(stream, delimiter="\t"))
    assert [int(row["class"]) for row in known] == labels.tolist()
    assert [int(row["prediction"]) for row in known] == logits.argmax(1).tolist()
    points = (tmp_path / "projector" / "test" / "tensors.tsv").read_text().splitlines()
    assert (len(points), len(points[0].split("\t"))) == (50, 16)
    assert 'tensor_path: "projector/test/tensors.tsv"' in (tmp_path / "projector_config.pbtxt").read_text()


def test_nothing_is_drawn_without_an_image_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("drawn")

    visuals = TestVisuals()
    monkeypatch.setattr(visuals, "_draw_or_warn", refuse)
    logger = MetricsCSV(str(tmp_path / "metrics.csv"))
    trainer = make_trainer(tmp_path, [visuals], logger=logger, max_epochs=1, enable_checkpointing=False)
    trainer.fit(make_module(), make_data())
    trainer.test(make_module(), make_data(), verbose=False)


def test_contact_sheets_and_embeddings_respect_their_limits(tmp_path: Path) -> None:
    for number, kept in ((0, []), (5, ["visuals/train/images", "visuals/test/mistakes"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        board = TensorBoard(str(folder))
        visuals = TestVisuals(max_images=number, max_embeddings=number)
        trainer = make_trainer(folder, [visuals], logger=board, max_epochs=1, enable_checkpointing=False)
        trainer.fit(make_module(), make_data())
        trainer.test(make_module(), make_data(), verbose=False)
        board.finalize("success")
        images = [tag for tag in events_of(folder).Tags()["images"] if tag != "visuals/test/confusion"]
        assert images == kept
        points = folder / "projector" / "test" / "tensors.tsv"
        assert (len(points.read_text().splitlines()) if points.exists() else 0) == number


def test_failed_visual_is_logged_and_the_others_are_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "projector").touch()  # blocks the creation of a folder
    board = TensorBoard(str(tmp_path))
    trainer = make_trainer(tmp_path, [TestVisuals()], logger=board, enable_checkpointing=False)
    trainer.test(make_module(), make_data(), verbose=False)
    board.finalize("success")
    (line,) = [record.getMessage() for record in caplog.records if "not logged" in record.getMessage()]
    assert "not logged: embeddings: " in line
    assert "visuals/test/confusion" in events_of(tmp_path).Tags()["images"]


def test_images_of_two_channels_are_not_drawn(tmp_path: Path) -> None:
    board = TensorBoard(str(tmp_path))
    data = make_data()
    data.input_shape = (2, 8, 8)
    visuals = TestVisuals()
    predictions = ImagePredictions(*torch.tensor([[0, 1], [0, 1], [0, 2]]), *torch.rand(2, 2))
    trainer = make_trainer(tmp_path, [visuals], logger=board, enable_checkpointing=False)
    trainer.datamodule = data  # type: ignore[attr-defined]
    visuals._predictions = predictions
    visuals.on_test_end(trainer, make_module())
    board.finalize("success")
    assert events_of(tmp_path).Tags()["images"] == ["visuals/test/confusion"]


def test_projected_embeddings_keep_their_distances(tmp_path: Path) -> None:
    draws = np.random.default_rng(1)
    points = (
        draws.standard_normal((30, 4096)).astype(np.float32) * np.linspace(0.5, 2, 30, dtype="f")[:, None]
    )
    rows = [(str(number), "a\tb") for number in range(30)]
    images = torch.zeros(30, 1, 100, 50, dtype=torch.uint8)
    board = TensorBoard(str(tmp_path))
    board.log_embeddings("wide", torch.from_numpy(points), ("number", "text"), rows, images)
    written = np.loadtxt(tmp_path / "projector" / "wide" / "tensors.tsv")
    assert written.shape == (30, 256)
    config = (tmp_path / "projector_config.pbtxt").read_text()
    assert "single_image_dim: 64\n    single_image_dim: 64" in config
    pairs = np.triu_indices(30, 1)
    ratios = [np.linalg.norm(each[pairs[0]] - each[pairs[1]], axis=1) for each in (written, points)]
    np.testing.assert_allclose(
        ratios[0] / ratios[1], 1, atol=0.25
    )  # 435 distances, standard deviation 4.4 % each
    np.testing.assert_array_equal(project_embeddings(points[:, :256]), points[:, :256])
    board.log_embeddings("wide", torch.from_numpy(points[:3] / 1e4), ("number", "text"), rows[:3], images[:3])
    written = np.loadtxt(tmp_path / "projector" / "wide" / "tensors.tsv")
    wanted = project_embeddings(points[:3] / 1e4)
    np.testing.assert_allclose(written, wanted, atol=1e-3 * np.abs(wanted).max())


def test_test_completes_if_predictions_cannot_be_gathered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(collector: PredictionCollector) -> ImagePredictions:
        raise MemoryError("no room")

    monkeypatch.setattr(PredictionCollector, "gather", fail)
    board = TensorBoard(str(tmp_path))
    trainer = make_trainer(tmp_path, [TestVisuals()], logger=board, enable_checkpointing=False)
    trainer.test(make_module(), make_data(), verbose=False)
    board.finalize("success")
    assert "test/acc" in trainer.callback_metrics
    assert "not logged: test predictions: no room" in caplog.text


def predictions_of(indices: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> ImagePredictions:
    collector = PredictionCollector()
    for part in indices.split(7):
        collector.append(logits[part], labels[part])
    return collector.gather()


def test_confusion_and_worst_mistakes_equal_a_plain_count() -> None:
    draws = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 5, generator=draws), torch.randint(4, (200,), generator=draws)
    predictions = predictions_of(torch.arange(200), logits, labels)
    counts = torch.zeros(5, 5, dtype=torch.long)
    for row, label in zip(logits, labels, strict=True):
        counts[label, row.argmax()] += 1
    assert (predictions.confusion(5) == counts).all()
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    wrong = [place for place in range(200) if logits[place].argmax() != labels[place]]
    expected = sorted(wrong, key=lambda place: -losses[place].item())[:6]
    assert predictions.indices[predictions.worst(6)].tolist() == expected
    third = class_results(counts, list("abcde"))[2]
    assert third.recall == pytest.approx(counts[2, 2] / counts[2].sum())
    assert third.precision == pytest.approx(counts[2, 2] / counts[:, 2].sum())
    assert third.f1 == pytest.approx(2 / (1 / third.recall + 1 / third.precision))
    never = counts.clone()
    never[:, 2] = 0  # class that is never predicted: precision 0, as in `evaluate`
    assert class_results(never, list("abcde"))[2][1:4] == (0.0, 0.0, 0.0)
    table = classification_report(counts, ["a|b", *"bcde"])
    assert r"| a\|b |" in table
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert rows[5].startswith("| e | 0.0000 | 0.0000 | 0.0000 | 0 |"), "no image of it: last"


def gather_as_rank(file: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    draws = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(51, 3, generator=draws), torch.randint(3, (51,), generator=draws)
    predictions = predictions_of(torch.arange(rank, 51, 2), logits, labels)
    if rank == 1:
        torch.save(tuple(predictions), file)
    dist.destroy_process_group()


def test_predictions_of_all_ranks_are_sorted_by_image(tmp_path: Path) -> None:
    run_ranks(partial(gather_as_rank, tmp_path / "predictions.pt"), 2)
    draws = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(51, 3, generator=draws), torch.randint(3, (51,), generator=draws)
    alone = predictions_of(torch.arange(51), logits, labels)
    for one, other in zip(torch.load(tmp_path / "predictions.pt"), alone, strict=True):
        assert torch.equal(one, other)


class GradientNormRecorder(L.Callback):
    """Records the gradient norm of each step in Lightning's hook before clipping."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        gradient = torch.cat([weight.grad.flatten() for weight in module.parameters()])
        self.norms.append(gradient.norm().item())


def fit(folder: Path, *more: L.Callback, ckpt_path: Path | None = None, **options: Any) -> dict[str, Any]:
    logger = MetricsCSV(str(folder / "metrics.csv"))
    module = make_module()
    settings = {"gradient_clip_val": 0.05, "accumulate_grad_batches": 2, "log_every_n_steps": 2} | options
    board = TensorBoard(str(folder))
    trainer = make_trainer(folder, more, logger=[logger, board], **settings)
    trainer.fit(module, make_data(seed=3), ckpt_path=ckpt_path, weights_only=True)
    rows = read_table(folder / "metrics.csv")
    for row in rows:
        for name in ("speed/images_per_s", "speed/data_wait_fraction"):
            row.pop(name, None)
    return {"rows": rows, "weights": module.state_dict()}


def test_grad_norm_is_logged_before_clipping(tmp_path: Path) -> None:
    norms = GradientNormRecorder()
    (tmp_path / "one").mkdir()
    single = fit(tmp_path / "one", norms, TrainingStats(), enable_checkpointing=False)
    (tmp_path / "many").mkdir()
    chunked = fit(tmp_path / "many", TrainingStats(), batches_per_hook=16, enable_checkpointing=False)
    assert chunked["rows"] == single["rows"]
    logged = {int(row["step"]): float(row["train/grad_norm"]) for row in single["rows"]}
    assert list(logged) == [2, 4, 6, 8]
    assert logged == pytest.approx({step: norms.norms[step - 1] for step in logged}, rel=1e-6)
    assert min(logged.values()) > 0.05, "nothing was clipped"


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_visuals_and_stats_do_not_change_weights_or_resuming(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("bare", "full", "resumed")]
    for folder in folders:
        folder.mkdir()
    bare = fit(folders[0], batches_per_hook=1, enable_checkpointing=False)
    saving = partial(ModelCheckpoint, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    full = fit(folders[1], saving(folders[1] / "kept"), TestVisuals(), TrainingStats(), batches_per_hook=1)
    assert all(torch.equal(full["weights"][name], value) for name, value in bare["weights"].items())
    # This checkpoint was written after its step's stats were logged, and before its loss was.
    kept = folders[1] / "kept" / "step=2.ckpt"
    row = torch.load(kept, weights_only=True)["record"]["loggers"]["MetricsCSV"]["row"]
    assert (row["step"], "train/grad_norm" in row, "train/loss" in row) == (2, True, False)
    again = saving(folders[2] / "kept")
    resumed = fit(folders[2], again, TestVisuals(), TrainingStats(), ckpt_path=kept, batches_per_hook=1)
    assert resumed["rows"] == full["rows"][-len(resumed["rows"]) :]
    assert all(torch.equal(resumed["weights"][name], value) for name, value in full["weights"].items())


class IrregularNetwork(nn.Module):
    """Network with shared weights, an in-place operation, branches, and no linear layer before the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = self.layer(images.flatten(1))
        first += 1
        return torch.cat([self.layer(first).relu() * self.scale, first], 1).sum(1, keepdim=True).expand(-1, 3)


def test_graph_connects_all_operations() -> None:
    network, images = IrregularNetwork(), torch.randn(2, 1, 2, 3)
    graph = record_graph(network, lambda: network(images), images)
    names = [node.name for node in graph.node]
    inputs = {node.name: list(node.input) for node in graph.node}
    assert len(set(names)) == len(names)
    for place, name in enumerate(names):
        assert set(inputs[name]) <= set(names[:place]), "no cycles, no strangers"
    assert inputs["layer/linear_2"] == ["add"]
    assert inputs["cat"] == ["mul", "add"]
    (mul,) = [node for node in graph.node if node.name == "mul"]
    assert b"scale [6]" in mul.attr["weights"].s
    assert penultimate_features(network, lambda: network(images)).shape == (2, 3)


def test_groups_of_training_and_validation_come_first() -> None:
    logged = ("train/loss", "train/grad_norm", "speed/images_per_s", "gpu/memory_gb", "val/loss", "train/lr")
    shown = sorted(map(display_name, logged))
    assert shown[:2] == ["train/loss", "val/loss"]
    assert {name.partition("/")[0] for name in shown[2:]} == {"vitals"}


def test_hparams_omit_augmentations_that_are_off(composed: Compose) -> None:
    config = OmegaConf.to_container(composed("augment.flip_prob=0.5"), resolve=True)
    names = [name for name in hyperparameters(config) if name.startswith("augment.")]
    assert names == ["augment.flip_prob", "augment.flip_schedule"]


@pytest.mark.parametrize("batches_per_hook", [1, 8])
def test_data_wait_is_the_fraction_of_time_in_the_loader(tmp_path: Path, batches_per_hook: int) -> None:
    class SlowData(Synthetic):
        def train_dataloader(self) -> Any:
            return SlowLoader(super().train_dataloader())

    logger = MetricsCSV(str(tmp_path / "metrics.csv"))
    trainer = make_trainer(
        tmp_path,
        [TrainingStats()],
        logger=logger,
        batches_per_hook=batches_per_hook,
        enable_checkpointing=False,
    )
    data = SlowData(input_shape=(1, 8, 8), num_classes=3, train_size=110, test_size=8, batch_size=16)
    trainer.fit(make_module(), data)
    waited_s = trainer.fit_loop.epoch_loop.data_wait_s
    batches = 2 * len(data.train_dataloader())
    assert batches * SlowLoader.DELAY_S <= waited_s
    fractions = [
        float(row["speed/data_wait_fraction"])
        for row in read_table(tmp_path / "metrics.csv")
        if row.get("speed/data_wait_fraction")
    ]
    assert fractions
    assert all(0.0 < fraction < 1.0 for fraction in fractions)


class SlowLoader:
    """Loader that waits before each batch."""

    DELAY_S = 0.01
    resumes_exactly = True

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.sampler = loader.sampler
        self.batch_sampler = None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Any:
        for batch in self.loader:
            time.sleep(self.DELAY_S)
            yield batch
