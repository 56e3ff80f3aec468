"""Tests of evaluation: metrics against plain Python, combined networks, output files and terminal text."""

import csv
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score, log_loss
from test_load_run import SHORT, Make, make  # noqa: F401 (a fixture)

from project.config import command_options as options
from project.datamodules.synthetic import Synthetic
from project.errors import DataError, InputError
from project.inference.evaluate import command, ensemble, metrics, output_files, result
from project.inference.evaluate.command import evaluate
from project.inference.evaluate.forward import image_losses, run_forward
from project.inference.evaluate.metrics import Predictions
from project.inference.evaluate.options import Options, check_networks, find_networks
from project.inference.load_run import load_run
from project.modules.losses import CrossEntropy, OneHotMSE
from project.runtime.text import columns_of, mistake_text


def predictions_of(logits: torch.Tensor, labels: torch.Tensor) -> Predictions:
    logs = logits.log_softmax(1)
    own = logs.gather(1, labels[:, None])[:, 0]
    return Predictions(logs, labels, logits.argmax(1), losses=-own)


def random_predictions(images: int = 300, classes: int = 7) -> Predictions:
    draws = torch.Generator().manual_seed(3)
    labels = torch.randint(classes - 1, (images,), generator=draws)  # none of the last class
    logits = torch.randn(images, classes, generator=draws, dtype=torch.float64)
    logits[torch.arange(images), labels] += 1.5
    logits[:, 2] -= 20  # never chosen
    return predictions_of(logits, labels)


def plain_metrics(found: Predictions, places: list[int]) -> dict[str, float | list[float]]:
    """Return all metrics of the images at these positions, computed one by one."""
    count, classes = len(places), found.num_classes
    rows = [found.probabilities[place].tolist() for place in places]
    labels = [int(found.labels[place]) for place in places]
    chosen = [row.index(max(row)) for row in rows]
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row, label, answer in zip(rows, labels, chosen, strict=True):
        bins[math.ceil(max(row) * 15) - 1].append((max(row), label == answer))
    gaps = [abs(sum(sure - right for sure, right in each)) for each in bins]
    precision, recall, f1 = [], [], []
    for kind in range(classes):
        pairs = list(zip(labels, chosen, strict=True))
        hits = sum(label == answer == kind for label, answer in pairs)
        there, said = labels.count(kind), chosen.count(kind)
        recall.append(hits / there if there else 0.0 if said else math.nan)
        precision.append(hits / said if said else 0.0 if there else math.nan)
        f1.append(2 * hits / (there + said) if there + said else math.nan)
    own = [row[label] for row, label in zip(rows, labels, strict=True)]
    top = [sorted(row)[::-1][:5] for row in rows]

    def macro(values: list[float]) -> float:
        held = [value for kind, value in enumerate(values) if kind in labels or kind in chosen]
        return sum(held) / len(held)

    return {
        "accuracy": sum(label == answer for label, answer in zip(labels, chosen, strict=True)) / count,
        "top5_accuracy": sum(value in best for value, best in zip(own, top, strict=True)) / count,
        "nll": -sum(map(math.log, own)) / count,
        "loss": -sum(map(math.log, own)) / count,
        "brier": sum(
            sum((share - (kind == label)) ** 2 for kind, share in enumerate(row))
            for row, label in zip(rows, labels, strict=True)
        )
        / count,
        "ece": sum(gaps) / count,
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "macro_precision": macro(precision),
        "macro_recall": macro(recall),
        "macro_f1": macro(f1),
        "support": [float(labels.count(kind)) for kind in range(classes)],
    }


def test_metrics_equal_plain_python() -> None:
    found = random_predictions()
    values, wanted = metrics.compute_metrics(found), plain_metrics(found, list(range(300)))
    assert values.keys() == wanted.keys()
    for name, value in values.items():
        assert value.tolist() == pytest.approx(wanted[name], nan_ok=True), name


def test_image_counts_equal_repeated_images() -> None:
    found = random_predictions(60)
    random.seed(5)
    resample = random.choices(range(60), k=60)
    counts = torch.bincount(torch.tensor(resample), minlength=60).double()
    values = metrics.weighted_metrics(found, torch.stack([torch.ones(60).double(), counts], dim=1))
    for name, wanted in plain_metrics(found, resample).items():
        assert values[name][1].tolist() == pytest.approx(wanted, nan_ok=True), name


def test_calibration_error_equals_a_hand_calculation() -> None:
    # Bin (0.6, 0.667]: two images at 0.65, one right: |0.5 - 0.65|; bin (0.933, 1]: two at 0.95, both right.
    sure = torch.tensor([0.65, 0.65, 0.95, 0.95], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 0])
    probabilities = torch.stack([sure, 1 - sure], dim=1)
    found = Predictions(probabilities.log(), labels, probabilities.argmax(1))
    assert metrics.compute_metrics(found)["ece"].item() == pytest.approx((2 * 0.15 + 2 * 0.05) / 4)
    bins = metrics.reliability(found)
    assert bins["images"].tolist() == [0] * 9 + [2] + [0] * 4 + [2]
    assert bins["accuracy"][[9, 14]].tolist() == [0.5, 1.0]
    edges = torch.tensor([0.0, 1 / 15, 1 / 15 + 1e-6, 3 / 15, 1.0], dtype=torch.float64)
    assert metrics.confidence_bin(edges).tolist() == [0, 0, 1, 2, 14]
    assert found.confusion().tolist() == [[3, 0], [1, 0]]


def test_top5_ranks_classes_with_underflowing_probabilities() -> None:
    logits = torch.tensor([[200.0, 0, -10, -20, -30, -40, -50]]).repeat(2, 1)
    found = predictions_of(logits, torch.tensor([4, 5]))  # the fifth and the sixth
    assert found.probabilities[:, 1:].count_nonzero() == 0
    assert found.per_image["top5_accuracy"].tolist() == [True, False]


def test_intervals_equal_binomial_and_normal_quantiles() -> None:
    draws = torch.Generator().manual_seed(0)
    labels = torch.zeros(1000, dtype=torch.long)
    logits = torch.randn(1000, 2, generator=draws)
    found = predictions_of(logits, labels)
    bounds = metrics.bootstrap_intervals(found, 2000)
    acc = metrics.compute_metrics(found)["accuracy"].item()
    spread = 1.96 * math.sqrt(acc * (1 - acc) / 1000)
    assert [end.item() for end in bounds["accuracy"]] == pytest.approx([acc - spread, acc + spread], abs=4e-3)
    losses = found.per_image["nll"]
    middle, spread = losses.mean().item(), 1.96 * losses.std().item() / math.sqrt(1000)
    assert [end.item() for end in bounds["nll"]] == pytest.approx(
        [middle - spread, middle + spread], abs=5e-3
    )
    again = metrics.bootstrap_intervals(found, 2000)
    assert torch.equal(bounds["nll"][0], again["nll"][0])
    assert not torch.equal(bounds["nll"][0], metrics.bootstrap_intervals(found, 2000, seed=1)["nll"][0])


def test_intervals_of_fractions_are_scipys_and_never_of_width_0() -> None:
    found = random_predictions()
    labels, predicted = found.labels.numpy(), found.predicted.numpy()
    bounds = metrics.fraction_intervals(found)

    def wilson(hits: int, count: int) -> list[float]:
        known = binomtest(hits, count).proportion_ci(method="wilson")
        return [known.low, known.high]

    assert [end.item() for end in bounds["accuracy"]] == pytest.approx(
        wilson(int((labels == predicted).sum()), 300)
    )
    for kind in range(7):
        hits = int(((labels == kind) & (predicted == kind)).sum())
        for name, count in (("precision", (predicted == kind).sum()), ("recall", (labels == kind).sum())):
            ends = [end[kind].item() for end in bounds[name]]
            assert ends == pytest.approx(wilson(hits, int(count)) if count else [math.nan] * 2, nan_ok=True)
    values = metrics.compute_metrics(found)
    for name in ("precision", "recall", "f1"):
        low, high = bounds[name]
        known = values[name].isfinite() & low.isfinite()
        assert (low[known] <= values[name][known]).all()
        assert (values[name][known] <= high[known]).all()
    right = Predictions(torch.eye(3).log_softmax(1), torch.arange(3), torch.arange(3))
    for name, (low, high) in metrics.fraction_intervals(right).items():
        assert (high == 1).all(), name
        assert (low < high).all(), name


def test_intervals_have_their_nominal_coverage() -> None:
    draws = torch.Generator().manual_seed(7)
    held = 0
    for trial in range(100):
        right = torch.rand(200, generator=draws) < 0.8
        probabilities = torch.tensor([0.9, 0.1]).expand(200, 2)
        found = Predictions(probabilities.log(), 1 - right.long(), torch.zeros(200).long())
        low, high = metrics.bootstrap_intervals(found, 200, seed=trial)["accuracy"]
        held += bool(low <= 0.8 <= high)
    assert 88 <= held <= 99  # of 100, 95 %


def test_per_image_losses() -> None:
    draws = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(9, 4, generator=draws), torch.arange(9) % 4
    for loss in (CrossEntropy(4), CrossEntropy(4, label_smoothing=0.2), OneHotMSE(4)):
        mean = loss(logits, labels).item()
        losses = image_losses(loss, logits, labels, mean)
        assert losses is not None
        assert losses.mean().item() == pytest.approx(mean)
        assert losses[3].item() == pytest.approx(loss(logits[3:4], labels[3:4]).item())
    weighted = CrossEntropy(4, class_weights=[1, 2, 3, 4])
    assert image_losses(weighted, logits, labels, weighted(logits, labels).item()) is None


def parse(*words: str) -> Options:
    return options.read_options(Options, words)


def read(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def test_a_run_is_evaluated(make: Make, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    run = make("model=mlp")
    status = run.read_status()["metrics"]
    evaluate(parse(f"run={run.path}", "num_resamples=50"))
    printed = capsys.readouterr().out
    assert printed.count("as in the run") == 2
    assert max(map(len, printed.splitlines()[1:-1])) <= 80
    folder = run.path / "evaluation" / "test"
    found = read(folder)
    assert found["figures"]["accuracy"]["value"] == found["run_figures"]["accuracy"] == status["test/acc"]
    assert found["figures"]["loss"]["value"] == status["test/loss"]
    assert found["figures"]["accuracy"]["low"] <= status["test/acc"] <= found["figures"]["accuracy"]["high"]
    assert sum(images for *_, images in found["confusion"]) == found["images"] == 21
    assert sum(row["images"] for row in found["classes"]) == 21
    assert {file.name for file in folder.iterdir()} >= {"confusion_matrix.png", "reliability.png"}
    with (folder / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert sum(int(row["correct"]) for row in rows) == round(21 * status["test/acc"])
    names = [row["class"] for row in found["classes"]]
    assert list(rows[0]) == [
        *("index", "row", "label", "prediction", "probability", "correct", "label_probability", "loss"),
        *(f"p({name})" for name in names),
    ]
    labels, predicted = ([row[key] for row in rows] for key in ("label", "prediction"))
    shares = [[float(row[f"p({name})"]) for name in names] for row in rows]
    assert accuracy_score(labels, predicted) == pytest.approx(status["test/acc"])
    losses = [float(row["loss"]) for row in rows]
    whole = [[share / sum(row) for share in row] for row in shares]  # rounded in the file
    assert log_loss(labels, whole, labels=names) == pytest.approx(sum(losses) / 21, rel=1e-4)
    assert sum(losses) / 21 == pytest.approx(status["test/loss"], rel=1e-4)
    f1 = f1_score(labels, predicted, average=None, labels=names, zero_division=math.nan)
    own = [math.nan if row["f1"]["value"] is None else row["f1"]["value"] for row in found["classes"]]
    assert own == pytest.approx(list(f1), nan_ok=True)
    bounds = binomtest(round(21 * status["test/acc"]), 21).proportion_ci(method="wilson")
    assert found["figures"]["accuracy"]["low"] == pytest.approx(bounds.low, abs=1e-6)
    assert found["figures"]["accuracy"]["high"] == pytest.approx(bounds.high, abs=1e-6)
    wrong = [row for row in rows if row["correct"] == "0"]
    assert len(found["mistakes"]) == len(wrong) > 0
    first = found["mistakes"][0]
    assert first["probability"] == pytest.approx(max(float(row["probability"]) for row in wrong), rel=1e-4)
    assert first["label"] == rows[first["index"]]["label"]
    assert mistake_text(first["label"], first["prediction"], first["probability"]) in printed
    # Replaces the earlier evaluation.
    evaluate(parse(f"run={run.path}", "num_resamples=0", "figures=false", "predictions=false"))
    assert [file.name for file in folder.iterdir()] == ["evaluation.json"]
    assert read(folder)["intervals"]["method"] is None
    assert "low" not in read(folder)["figures"]["nll"]
    assert "low" in read(folder)["figures"]["accuracy"]
    evaluate(parse(f"run={run.path}", "split=val", "tta=flip", "weights=last", "figures=false"))
    evaluate(parse(f"run={run.path}", "data.noise=0.5", "num_resamples=9", "figures=false"))
    assert {file.name for file in folder.parent.iterdir()} == {
        *("test", "val-tta_flip-last", "test-noise_0.5"),
    }
    assert read(folder.with_name("test-noise_0.5"))["images"] == 21
    assert read(folder.with_name("test-noise_0.5"))["run_figures"] is None


def test_ensemble_averages_probabilities(
    make: Make,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = [make("model=cnn_batchnorm", f"seed={seed}", name=f"seed{seed}") for seed in (1, 2)]
    both = "run=" + ",".join(str(run.path) for run in runs)
    reads, read_images = [], Synthetic.load_split
    monkeypatch.setattr(
        Synthetic, "load_split", lambda *wanted: reads.append(wanted[1]) or read_images(*wanted)
    )
    evaluate(parse(both, "num_resamples=20", f"output={runs[0].path.parent / 'combined'}", "figures=false"))
    assert reads == ["test"]  # read once for both networks
    found = read(runs[0].path.parent / "combined")
    assert [row["figures"]["accuracy"]["value"] for row in found["members"]] == [
        run.read_status()["metrics"]["test/acc"] for run in runs
    ]
    printed = capsys.readouterr().out
    assert "ensemble of 2 networks" in printed
    trained = [load_run(run) for run in runs]
    for each in trained:
        each.datamodule.setup("test")
    batches = [list(each.datamodule.test_dataloader()) for each in trained]
    with torch.inference_mode():
        shares = [
            torch.cat([each.module(images).softmax(1) for images, _ in own])
            for each, own in zip(trained, batches, strict=True)
        ]
    labels = torch.cat([label for _, label in batches[0]])
    mean = (shares[0].double() + shares[1].double()) / 2
    assert found["figures"]["accuracy"]["value"] == (mean.argmax(1) == labels).double().mean().item()
    nll = -mean.gather(1, labels[:, None]).log().mean().item()
    assert found["figures"]["nll"]["value"] == pytest.approx(nll, rel=1e-5)
    assert found["figures"]["loss"]["value"] == pytest.approx(nll, rel=1e-5)


def test_networks_with_different_images_cannot_be_combined(
    make: Make,  # noqa: F811
    image_folder: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "photos"
    folder.symlink_to(image_folder / "train")
    runs = []
    for number, path in enumerate([image_folder / "train", folder, folder]):
        words = ("data=image_folder", f"data.path={path}", "data.image_cache=null", "data.test_size=24")
        seed = f"data.split_seed={number // 2}"
        runs.append(make("model=mlp", *words, seed, base=SHORT, name=f"run{number}"))
    one, other, otherwise = map(load_run, runs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "run_forward", lambda *_: pytest.fail("ran before the check"))
        for words in ("combine=ensemble", "split=val"):
            with pytest.raises(InputError, match=r"^run=.*run2: has other images in split=\w+ than .*run0"):
                evaluate(parse(f"run={runs[0].path},{runs[2].path}", words))
        mlp = make("model=mlp", name="mlp")
        with pytest.raises(InputError, match=r"^run=.*mlp: its classes are not those of .*run0"):
            evaluate(parse(f"run={runs[0].path},{mlp.path}"))
    ensemble.require_same_images([one, other], "test")  # the same images by another path
    first, second, third = (ensemble.identify_images(each, "test") for each in (one, other, otherwise))
    assert first.is_same(second)
    assert torch.equal(first.labels, third.labels)
    assert not first.is_same(third)


def test_images_without_files_are_identified_by_pixels(make: Make) -> None:  # noqa: F811
    run = make("model=mlp")
    same, others = load_run(run, data=["data.eval_batch_size=5"]), load_run(run, data=["data.noise=0.5"])
    wanted = ensemble.identify_images(load_run(run), "test")
    assert ensemble.identify_images(same, "test").is_same(wanted)
    assert not ensemble.identify_images(others, "test")._replace(labels=wanted.labels).is_same(wanted)
    smaller = wanted._replace(shape=(1, 4, 4), digest=b"")
    assert smaller.is_same(wanted)
    assert not smaller._replace(recipe="").is_same(wanted)


def test_weights_are_averaged(make: Make) -> None:  # noqa: F811
    runs = [make("model=cnn_batchnorm", f"seed={seed}", name=f"seed{seed}") for seed in (1, 2)]
    trained = [load_run(run) for run in runs]
    states = [each.module.state_dict() for each in trained]
    plain = ensemble.average_weights(trained, recompute=False, device=torch.device("cpu"))
    for name, value in plain.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2)
    again = ensemble.average_weights(trained, recompute=True, device=torch.device("cpu"))
    assert not again.module.training
    state, differing = plain.module.state_dict(), []
    for name, value in again.module.state_dict().items():
        if not torch.equal(value, state[name]):
            differing.append(name.rpartition(".")[2])
    assert {*differing} == {"running_mean", "running_var", "num_batches_tracked"}
    layer = next(layer for layer in again.module.modules() if isinstance(layer, torch.nn.BatchNorm2d))
    inputs = []
    handle = layer.register_forward_hook(lambda _, images, __: inputs.append(images[0]))
    trained[0].datamodule.setup("fit")
    with torch.inference_mode():
        again.module(trained[0].datamodule.training_sample(2048))
    handle.remove()
    torch.testing.assert_close(layer.running_mean, inputs[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    alone = ensemble.average_weights([trained[0], trained[0]], recompute=False, device=torch.device("cpu"))
    for name, value in alone.module.state_dict().items():
        assert torch.equal(value, states[0][name])
    other = load_run(make("model=mlp", name="mlp"))
    with pytest.raises(
        InputError, match=r"^run=.*mlp: model is MLP, that of .*seed1 .*; use combine=ensemble"
    ):
        ensemble.average_weights([trained[0], other], recompute=False, device=torch.device("cpu"))


def test_wrong_input_is_reported(make: Make, tmp_path: Path) -> None:  # noqa: F811
    run = make("model=mlp")
    folder = run.path
    with pytest.raises(InputError, match=r"^combine=average: there is one network; give several"):
        evaluate(parse(f"run={folder}", "combine=average"))
    with pytest.raises(InputError, match=r"^ensemble=top: give all, greedy, or a number"):
        evaluate(parse(f"run={folder}", "ensemble=top"))
    with pytest.raises(InputError, match=r"^ensemble=top2: .* is not a sweep"):
        evaluate(parse(f"run={folder}", "ensemble=top2"))
    with pytest.raises(InputError, match=r"is given twice"):
        evaluate(parse(f"run={folder},{folder}"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(
        InputError, match=r"^output=.*mine: contains thesis\.txt, which is not part of an evaluation"
    ):
        evaluate(parse(f"run={folder}", f"output={tmp_path / 'mine'}"))
    (tmp_path / "mine" / "evaluation.json").touch()  # not an evaluation either, as there are other files
    with pytest.raises(
        InputError,
        match=r"^output=.*mine: contains thesis\.txt, which is not part of an evaluation; give another",
    ):
        evaluate(parse(f"run={folder}", f"output={tmp_path / 'mine'}"))
    for word, printed in (
        ("data.eval_batch_size=0", "must be at least 1"),
        ("data.eval_batch_size=x", "expected a whole number, got 'x'"),
    ):
        with pytest.raises(InputError, match=rf"^{word}: {printed}"):
            evaluate(parse(f"run={folder}", word))
    with pytest.raises(InputError, match=r"^data\.num_classes=4: the run's network has 10 classes"):
        evaluate(parse(f"run={folder}", "data.num_classes=4"))
    assert not (folder / "evaluation").exists()
    (folder / "evaluation").touch()
    with pytest.raises(
        InputError, match=r"^output=.*cannot be written .*; give another folder with output=FOLDER"
    ):
        evaluate(parse(f"run={folder}"))


def test_best_runs_of_a_sweep_are_found(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    for name, value in (("a", 0.5), ("b", 0.9), ("c", 0.7), ("d", 0.95)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text("seed: 1\n")
        status = {"state": "failed" if name == "d" else "done", "metrics": {"val/acc": value}}
        status |= {"monitor": "val/acc", "mode": "max"}
        (folder / "status.json").write_text(json.dumps(status | {"started": "2026-01-31"}))

    def names(**options: str) -> list[str]:
        found, _ = find_networks([str(tmp_path)], ["auto"], options.get("several"), tmp_path)
        return [member.run.path.name for member in found]

    assert names() == ["b"]
    assert names(several="all") == ["b", "c", "a"]
    assert names(several="top2") == ["b", "c"]
    with pytest.raises(InputError, match=r"^ensemble=top4: too few .*expected 4, got 3\); give"):
        names(several="top4")


def test_greedy_selection_equals_trying_all_additions() -> None:
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (40,), generator=draws)
    right = torch.nn.functional.one_hot(labels, 3)
    members = [
        (strength * right + noise * torch.randn(40, 3, generator=draws)).log_softmax(1)
        for strength, noise in ((1.0, 1.0), (0.8, 1.0), (0.9, 1.2), (-1.0, 1.0), (0.1, 0.1))
    ]

    def loss_of(chosen: list[int]) -> float:
        mean = torch.stack([members[each].exp() for each in chosen]).double().mean(0)
        return float(-mean[torch.arange(40), labels].log().mean())

    chosen: list[int] = []
    while len(chosen) < 20:
        best = min(range(5), key=lambda each: loss_of([*chosen, each]))
        if chosen and loss_of([*chosen, best]) >= loss_of(chosen):
            break
        chosen.append(best)
    assert len(set(chosen)) > 1
    assert 3 not in chosen  # is wrong most often
    assert ensemble.select_greedily(members, labels) == {each: chosen.count(each) for each in chosen}
    hopeless = [torch.full((40, 3), -torch.inf)] * 2
    assert ensemble.select_greedily(hopeless, labels) == {0: 1}


def test_greedy_ensemble_of_a_sweep(
    make: Make,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "sweep.json").write_text("{}")
    for seed in (1, 2):
        run = make("model=cnn_batchnorm", f"seed={seed}", name=f"seed{seed}")
        shutil.copytree(run.path, sweep / run.path.name)
    evaluate(parse(f"run={sweep}", "ensemble=greedy", "num_resamples=20", "figures=false"))
    assert "selected greedily" in capsys.readouterr().out
    (output,) = (sweep / "evaluation").iterdir()
    assert output.name.startswith("test-greedy_ensemble_from_2-")
    members, _ = find_networks([str(sweep)], ["auto"], "greedy", tmp_path)
    logs = [run_forward(load_run(member.run), "val", "none").predictions for member in members]
    wanted = ensemble.select_greedily([each.log_probabilities for each in logs], logs[0].labels)
    shown = [members[each].shown + (f" ×{count}" if count > 1 else "") for each, count in wanted.items()]
    assert [member["name"] for member in read(output)["members"]] == shown
    damaged = members[0].run.checkpoints / "best.ckpt"
    damaged = damaged if damaged.exists() else damaged.with_name("last.ckpt")
    damaged.write_bytes(damaged.read_bytes()[:100])
    left, _ = check_networks(parse(f"run={sweep}", "ensemble=greedy", "weights=auto"))
    assert [one.run.path for one in left] == [one.run.path for one in members[1:]]
    assert capsys.readouterr().err.startswith(f"skipped: run={members[0].run.shown}: {damaged} ")
    with pytest.raises(DataError, match=rf"^run={members[0].run.shown}: "):
        check_networks(parse(f"run={sweep}", "ensemble=all"))
    with pytest.raises(InputError, match=r"^split=val: ensemble=greedy selects by these images"):
        check_networks(parse(f"run={sweep}", "ensemble=greedy", "split=val"))
    with pytest.raises(InputError, match=r"^combine=average: ensemble=greedy averages probabilities"):
        check_networks(parse(f"run={sweep}", "ensemble=greedy", "combine=average"))


def test_evaluation_folder_is_replaced_atomically(tmp_path: Path) -> None:
    target = tmp_path / "evaluation" / "test"
    for text in ("old", "new"):
        with output_files.replacing_folder(target, is_given=False) as folder:
            (folder / output_files.RESULT).write_text(text)

    def fail_while_writing() -> None:
        with output_files.replacing_folder(target, is_given=False) as folder:
            (folder / output_files.RESULT).write_text("part")
            raise ArithmeticError("broken")

    with pytest.raises(ArithmeticError, match="broken"):
        fail_while_writing()
    assert [file.read_text() for file in target.parent.rglob("*.json")] == ["new"]
    assert [file.name for file in target.parent.iterdir()] == ["test"]


def test_failed_replacement_keeps_the_earlier_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename = tmp_path / "test", Path.rename

    def write(text: str) -> None:
        with output_files.replacing_folder(target, is_given=False) as folder:
            (folder / output_files.RESULT).write_text(text)

    def written() -> list[tuple[str, str]]:
        return [(file.name, (file / output_files.RESULT).read_text()) for file in tmp_path.iterdir()]

    def make_rename(*, fails: bool, moved: bool) -> Callable[[Path, Path], Path]:
        def renamed(self: Path, other: Path) -> Path:
            if self == target and moved:  # another process replaced it first
                shutil.rmtree(self)
            if fails and self.name.endswith(".partial"):
                raise PermissionError("not now")
            return rename(self, other)

        return renamed

    write("old")
    monkeypatch.setattr(Path, "rename", make_rename(fails=True, moved=False))
    with pytest.raises(PermissionError, match="not now"):
        write("new")
    assert written() == [("test", "old")]
    monkeypatch.setattr(Path, "rename", make_rename(fails=False, moved=True))
    write("new")
    assert written() == [("test", "new")]


def test_evaluation_names_are_distinct() -> None:
    name = output_files.evaluation_name
    assert name("test", [], None, "auto") == "test"
    assert name("val", ["data=image_folder", "data.path=/a/my photos"], "none", "last") == (
        "val-image_folder-my_photos-tta_none-last"
    )
    assert name("test", ["data.path=../.."], None, "x/y.ckpt") == "test-other-y"
    combined = [output_files.combined_name("test", "ensemble_of", list(names)) for names in ("ab", "ac")]
    assert combined[0] != combined[1]
    assert combined[0].startswith("test-ensemble_of_2-")


def test_class_table_fits_wide_characters_and_many_classes() -> None:
    figure = {"value": 0.5, "low": 0.25, "high": 0.75}
    rows = [
        {
            "class": f"{'猫と犬' * 9}{number}",
            "images": 5,
            "precision": figure,
            "recall": figure,
            "f1": {"value": number / 1000, "low": 0.0, "high": 1.0},
        }
        for number in reversed(range(1000))
    ]
    rows[3]["class"], rows[3]["f1"] = "bad", {"value": math.nan, "low": math.nan, "high": math.nan}
    rows[3]["images"] = 0
    lines = result.render_classes(rows, "evaluation.json").splitlines()
    assert {columns_of(line) for line in lines[1:-1]} == {80}
    assert len(lines) == 22
    assert "the 20 of 1000 classes with the lowest F1" in lines[-1]
