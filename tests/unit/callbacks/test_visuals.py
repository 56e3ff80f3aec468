"""What a run leaves in TensorBoard beside curves, what that may cost, and that it changes nothing else."""

import csv
import logging
import sys
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
from small import make_data, make_module, make_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import distributed as dist
from torch import nn

from project.callbacks import spending as spending_module
from project.callbacks.features import last_features
from project.callbacks.predictions import Answers, Collector, as_markdown, class_results
from project.callbacks.spending import Spending
from project.callbacks.training_stats import Measurements
from project.callbacks.visuals import COST_S, Story
from project.datamodules.loading.augmentation import Augmentation
from project.loggers.csv import MetricsCSV
from project.loggers.graph import record_graph
from project.loggers.projection import CONFIG, narrowed, write_projection
from project.loggers.tensorboard import TensorBoard, shown_as
from project.runs.hparam_diff import hyperparameters
from project.training.ddp.launch import run_ranks


def events_of(folder: Path) -> EventAccumulator:
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def text_of(events: EventAccumulator, tag: str) -> str:
    return events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode()


def test_a_run_shows_its_test_its_images_and_its_network(tmp_path: Path) -> None:
    board = TensorBoard(str(tmp_path))
    board.log_hyperparams({"optim.lr": 0.1})
    module, data = make_module(), make_data(augment=Augmentation(3, random_crop_padding=1, mixup=0.4))
    trainer = make_trainer(
        tmp_path, [Story(budget=1), Measurements()], logger=board, enable_checkpointing=False
    )
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    board.finalize("success")
    events = events_of(tmp_path)
    tags = events.Tags()
    assert tags["images"] == ["train/images", "test/confusion", "test/mistakes"]
    assert set(tags["scalars"]) == {
        *("train/loss", "train/acc", "val/loss", "val/acc", "test/loss", "test/acc"),
        *("vitals/lr", "vitals/grad_norm", "vitals/speed_images_per_s"),
    }
    assert "custom_scalars__config__" in tags["tensors"]
    logits = torch.cat([module.eval()(images) for images, _ in data.test_dataloader()])
    labels = torch.cat([labels for _, labels in data.test_dataloader()])
    right = int((logits.argmax(1) == labels).sum())
    assert f"{right} of 50 images right" in text_of(events, "test/classes")
    graph = events.Graph()
    assert {"images", "body/Conv2d_0/conv2d", "logits"} <= {node.name for node in graph.node}
    with (tmp_path / "projector" / "points_known.tsv").open(newline="") as stream:
        known = list(csv.DictReader(stream, delimiter="\t"))
    assert [int(row["class"]) for row in known] == labels.tolist()
    assert [int(row["prediction"]) for row in known] == logits.argmax(1).tolist()
    points = (tmp_path / "projector" / "points.tsv").read_text().splitlines()
    assert (len(points), len(points[0].split("\t"))) == (50, 16)
    assert 'tensor_path: "projector/points.tsv"' in (tmp_path / "projector_config.pbtxt").read_text()


def test_nothing_is_drawn_where_nobody_takes_pictures(tmp_path: Path) -> None:
    story = Story(budget=1)
    logger = MetricsCSV(str(tmp_path / "metrics.csv"))
    trainer = make_trainer(tmp_path, [story], logger=logger, max_epochs=1, enable_checkpointing=False)
    trainer.fit(make_module(), make_data())
    trainer.test(make_module(), make_data(), verbose=False)
    assert (story.spending.spent_s, story.spending.left_out) == (0, [])


def test_what_cannot_be_written_is_told_and_the_rest_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "projector").touch()  # where a folder ought to be made
    board = TensorBoard(str(tmp_path))
    trainer = make_trainer(tmp_path, [Story(budget=1)], logger=board, enable_checkpointing=False)
    trainer.test(make_module(), make_data(), verbose=False)
    board.finalize("success")
    (line,) = [record.getMessage() for record in caplog.records if "lacks" in record.getMessage()]
    assert "TensorBoard lacks points: " in line
    assert "test/confusion" in events_of(tmp_path).Tags()["images"]


def test_images_of_two_channels_are_not_drawn(tmp_path: Path) -> None:
    board = TensorBoard(str(tmp_path))
    data = make_data()
    data.input_shape = (2, 8, 8)
    story = Story(budget=1)
    answers = Answers(*torch.tensor([[0, 1], [0, 1], [0, 2]]), *torch.rand(2, 2))
    trainer = make_trainer(tmp_path, [story], logger=board, enable_checkpointing=False)
    trainer.datamodule = data  # type: ignore[attr-defined]
    story._answers = answers
    story.on_test_end(trainer, make_module())
    board.finalize("success")
    assert events_of(tmp_path).Tags()["images"] == ["test/confusion"]


def test_images_that_are_decoded_again_count_among_what_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, story, data = TensorBoard(str(tmp_path)), Story(0.001, least_s=0.6, images=4), make_data()
    read: list[int] = []
    in_memory = data.pixels

    def decoded(split: Any, places: torch.Tensor) -> torch.Tensor:
        read.extend(places.tolist())
        time.sleep(0.02 * len(places))  # 1 s for all that the points would take
        return in_memory(split, places)

    monkeypatch.setattr(data, "pixels", decoded)
    trainer = make_trainer(tmp_path, [story], logger=board, enable_checkpointing=False)
    trainer.test(make_module(), data, verbose=False)
    board.finalize("success")
    assert "points" in story.spending.left_out
    assert len(read) <= 2 + story.images
    assert 0.04 < story.spending.spent_s < 3, "0.6 s, on a machine of any pace"


def test_wide_points_are_narrowed_and_keep_their_distances(tmp_path: Path) -> None:
    draws = np.random.default_rng(1)
    points = (
        draws.standard_normal((30, 4096)).astype(np.float32) * np.linspace(0.5, 2, 30, dtype="f")[:, None]
    )
    rows = [[str(number)] for number in range(30)]
    images = torch.zeros(30, 1, 100, 50, dtype=torch.uint8)
    write_projection(tmp_path, "points", points, ["number"], rows, images)
    written = np.loadtxt(tmp_path / "projector" / "points.tsv")
    assert written.shape == (30, 256)
    assert "single_image_dim: 32\n    single_image_dim: 64" in (tmp_path / CONFIG).read_text()
    pairs = np.triu_indices(30, 1)
    ratios = [np.linalg.norm(each[pairs[0]] - each[pairs[1]], axis=1) for each in (written, points)]
    np.testing.assert_allclose(ratios[0] / ratios[1], 1, atol=0.25)  # of 435, at 4.4 % each
    np.testing.assert_array_equal(narrowed(points[:, :256]), points[:, :256])


def test_a_test_whose_answers_cannot_be_had_ends_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(collector: Collector) -> Answers:
        raise MemoryError("no room")

    monkeypatch.setattr(Collector, "gather", fail)
    board = TensorBoard(str(tmp_path))
    trainer = make_trainer(tmp_path, [Story(budget=1)], logger=board, enable_checkpointing=False)
    trainer.test(make_module(), make_data(), verbose=False)
    board.finalize("success")
    assert "test/acc" in trainer.callback_metrics
    assert "TensorBoard lacks the test: no room" in caplog.text


def answers_of(places: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> Answers:
    collector = Collector()
    for part in places.split(7):
        collector.append(logits[part], labels[part])
    return collector.gather()


def test_answers_are_counted_as_one_by_one_and_the_worst_come_first() -> None:
    draws = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 5, generator=draws), torch.randint(4, (200,), generator=draws)
    answers = answers_of(torch.arange(200), logits, labels)
    counts = torch.zeros(5, 5, dtype=torch.long)
    for row, label in zip(logits, labels, strict=True):
        counts[label, row.argmax()] += 1
    assert (answers.confusion(5) == counts).all()
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    wrong = [place for place in range(200) if logits[place].argmax() != labels[place]]
    expected = sorted(wrong, key=lambda place: -losses[place].item())[:6]
    assert answers.places[answers.worst(6)].tolist() == expected
    third = class_results(counts, list("abcde"))[2]
    assert third.recall == pytest.approx(counts[2, 2] / counts[2].sum())
    assert third.precision == pytest.approx(counts[2, 2] / counts[:, 2].sum())
    assert third.f1 == pytest.approx(2 / (1 / third.recall + 1 / third.precision))
    never = counts.clone()
    never[:, 2] = 0  # chosen for no image: as `evaluate` has it
    assert class_results(never, list("abcde"))[2][1:4] == (0.0, 0.0, 0.0)
    table = as_markdown(counts, ["a|b", *"bcde"])
    assert r"| a\|b |" in table
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert rows[5].startswith("| e | 0.00 | 0.00 | 0.00 | 0 |"), "no image of it: last"


def gather_as_rank(file: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    draws = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(51, 3, generator=draws), torch.randint(3, (51,), generator=draws)
    answers = answers_of(torch.arange(rank, 51, 2), logits, labels)
    if rank == 1:
        torch.save(tuple(answers), file)
    dist.destroy_process_group()


def test_the_answers_of_all_ranks_come_in_the_order_of_the_images(tmp_path: Path) -> None:
    run_ranks(partial(gather_as_rank, tmp_path / "answers.pt"), 2)
    draws = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(51, 3, generator=draws), torch.randint(3, (51,), generator=draws)
    alone = answers_of(torch.arange(51), logits, labels)
    for one, other in zip(torch.load(tmp_path / "answers.pt"), alone, strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [100.0]
    monkeypatch.setattr(spending_module.time, "perf_counter", lambda: now[0])
    monkeypatch.setitem(sys.modules, "PIL.Image", sys.modules[__name__])  # imported, or so it seems
    return now


def spend(account: Spending, clock: list[float], pace: float = 1.0) -> None:
    for name in COST_S:
        if account.allows(name):
            with account.on(name):
                clock[0] += pace * COST_S[name]


def test_what_there_is_no_time_for_is_left_out_by_importance(clock: list[float]) -> None:
    account = Spending(0.03, 0.0, COST_S)
    clock[0] += 6.0  # 0.18 s: the confusion matrix, the mistakes, and what takes next to nothing
    spend(account, clock)
    assert account.left_out == ["samples", "graph", "points"]
    assert next(account.tell()).endswith(": samples, graph, points")
    assert account.spent_s <= 0.18
    for budget, passed, least_s, left in ((0.03, 60.0, 0.0, 0), (0.03, 0.0, 1.0, 0), (1, 0.0, 0.0, 0)):
        account = Spending(budget, least_s, COST_S)
        clock[0] += passed
        spend(account, clock)
        assert len(account.left_out) == left, (budget, passed, least_s)
    assert not Spending(0, 1.0, COST_S).allows("classes")


def test_a_slow_machine_is_learned_from_what_it_has_done(clock: list[float]) -> None:
    account = Spending(0.03, 0.0, COST_S)
    clock[0] += 16.0  # 0.48 s: enough for everything at the usual pace
    spend(account, clock, pace=3.0)
    assert account.left_out == ["samples", "graph", "points"]
    early = Spending(0.03, 0.0, COST_S)
    clock[0] += 5.0  # enough for one of them, not for what is more important too
    assert early.allows("samples")
    assert not early.allows("samples", and_all=True)
    clock[0] += 15.0
    assert early.allows("samples", and_all=True)


class Norms(L.Callback):
    """Keeps the norm of each step's gradient, as Lightning shows it before it clips."""

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
        row.pop("speed/images_per_s", None)
    return {"rows": rows, "weights": module.state_dict()}


def test_the_gradients_norm_is_that_before_clipping_at_the_logged_steps(tmp_path: Path) -> None:
    norms = Norms()
    (tmp_path / "one").mkdir()
    single = fit(tmp_path / "one", norms, Measurements(), enable_checkpointing=False)
    (tmp_path / "many").mkdir()
    chunked = fit(tmp_path / "many", Measurements(), batches_per_hook=16, enable_checkpointing=False)
    assert chunked["rows"] == single["rows"]
    logged = {int(row["step"]): float(row["train/grad_norm"]) for row in single["rows"]}
    assert list(logged) == [2, 4, 6, 8]
    assert logged == pytest.approx({step: norms.norms[step - 1] for step in logged}, rel=1e-6)
    assert min(logged.values()) > 0.05, "nothing was clipped"


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_story_and_measurements_change_no_weight_and_go_on_exactly(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("bare", "full", "resumed")]
    for folder in folders:
        folder.mkdir()
    bare = fit(folders[0], batches_per_hook=1, enable_checkpointing=False)
    saving = partial(ModelCheckpoint, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    full = fit(folders[1], saving(folders[1] / "kept"), Story(budget=1), Measurements(), batches_per_hook=1)
    assert all(torch.equal(full["weights"][name], value) for name, value in bare["weights"].items())
    # This checkpoint was written before the values of its step were.
    kept = folders[1] / "kept" / "step=2.ckpt"
    assert torch.load(kept, weights_only=True)["callbacks"]["Measurements"]["norm"] is not None
    again = saving(folders[2] / "kept")
    resumed = fit(folders[2], again, Story(budget=1), Measurements(), ckpt_path=kept, batches_per_hook=1)
    assert resumed["rows"] == full["rows"][-len(resumed["rows"]) :]
    assert all(torch.equal(resumed["weights"][name], value) for name, value in full["weights"].items())


class Twisted(nn.Module):
    """Weights used twice, an operation in place, branches, and logits that no linear layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = self.layer(images.flatten(1))
        first += 1
        return torch.cat([self.layer(first).relu() * self.scale, first], 1).sum(1, keepdim=True).expand(-1, 3)


def test_the_graph_connects_what_was_computed() -> None:
    network, images = Twisted(), torch.randn(2, 1, 2, 3)
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
    assert last_features(network, lambda: network(images)).shape == (2, 3)


def test_results_come_first_on_the_hparams_page(composed: Compose) -> None:
    logged = ("train/loss", "train/grad_norm", "speed/images_per_s", "gpu/memory_gb", "val/loss", "test/acc")
    shown = sorted(
        map(shown_as, (*logged, "train/lr", "train/acc", "val/best_acc", "val/best_loss", "test/loss"))
    )
    assert shown[:4] == ["best/val/acc", "best/val/loss", "test/acc", "test/loss"]
    config = OmegaConf.to_container(composed("augment.flip_prob=0.5"), resolve=True)
    names = [name for name in hyperparameters(config) if name.startswith("augment.")]
    assert names == ["augment.flip_prob", "augment.flip_schedule"]
