"""Commands after training, for runs of LightningModules without this project's base classes."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Compose
from html_pages import Page
from omegaconf import OmegaConf, open_dict
from user_modules import AutoEncoder, FileReader, VectorData

from project.config.command_options import read_options
from project.config.derived_values import complete
from project.errors import InputError
from project.inference.evaluate import options as evaluate
from project.inference.export import options as export
from project.inference.predict import command as predict
from project.runs.run_folder import RunFolder
from project.train import train

PARTS = {
    "auto_encoder": ("AutoEncoder", "VectorData", "val_loss"),
    "file_reader": ("FileReader", "VectorData", "val_loss"),
    "gan": ("GAN", "TrainingData", "generator_loss"),
}


@pytest.fixture(scope="module")
def runs(composer: Compose, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a trained run of each module, moved after training."""
    folder = tmp_path_factory.mktemp("foreign")
    for name, (module, data, monitor) in PARTS.items():
        config = composer(
            *("task=custom", f"task._target_=user_modules.{module}", f"data._target_=user_modules.{data}"),
            *(f"monitor={monitor}", "mode=min", "data.batch_size=8", "trainer.accelerator=cpu"),
            *("trainer.max_epochs=2", "~callbacks.progress"),
            run=folder / "made" / name,
        )
        complete(config)
        with open_dict(config):
            del config["hydra"]
        (folder / "made" / name / ".hydra").mkdir(parents=True)
        OmegaConf.save(config, folder / "made" / name / ".hydra" / "config.yaml")
        train(config)
        shutil.move(folder / "made" / name, folder / name)
    return folder


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    name = RunFolder(run).read_status()["weights"]
    weights: dict[str, torch.Tensor] = torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)[
        "state_dict"
    ]
    return weights


def call_evaluate(*words: str) -> None:
    evaluate.main(read_options(evaluate.Options, words))


def call_predict(*words: str) -> None:
    predict.predict_files(read_options(predict.Options, words))


def call_export(*words: str) -> None:
    export.main(read_options(export.Options, words))


def test_evaluation_repeats_the_metrics_of_the_runs_test(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = RunFolder(runs / "auto_encoder").read_status()["metrics"]
    for split in ("test", "val"):
        call_evaluate(f"run={runs / 'auto_encoder'}", f"split={split}")
        content = json.loads((runs / f"auto_encoder/evaluation/{split}/evaluation.json").read_text())
        name = f"{split}_loss"
        assert content["figures"][name]["value"] == content["run_figures"][name] == recorded[name]
        assert f"{name}  {recorded[name]:.4f}" in capsys.readouterr().out


def test_evaluation_accepts_other_arguments_of_the_data_module(runs: Path, tmp_path: Path) -> None:
    words = (f"run={runs / 'auto_encoder'}", f"output={tmp_path / 'out'}")
    call_evaluate(*words, "data.batch_size=4")
    content = json.loads((tmp_path / "out/evaluation.json").read_text())
    expected = RunFolder(runs / "auto_encoder").read_status()["metrics"]["test_loss"]
    assert content["overrides"] == ["data.batch_size=4"]
    assert content["figures"]["test_loss"]["value"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("run", "words", "message"),
    [
        ("gan", (), "split=test: GAN has no test_step; add one to evaluate this run"),
        (
            "auto_encoder",
            ("split=train",),
            "split=train: available for image classifiers only; choose split=t",
        ),
        ("auto_encoder", ("tta=flip",), "tta=flip: available for image classifiers only; leave it out"),
        ("auto_encoder", ("predictions=true",), "predictions=true: AutoEncoder has no prediction_columns"),
        ("auto_encoder,gan", (), "combine=ensemble: combines image classifiers only; give combine=none"),
    ],
)
def test_evaluation_says_what_a_task_lacks(
    runs: Path, run: str, words: tuple[str, ...], message: str
) -> None:
    names = ",".join(str(runs / name) for name in run.split(","))
    with pytest.raises(InputError, match=message):
        call_evaluate(f"run={names}", *words)


def test_predict_step_gives_a_row_for_each_input_of_the_test_loader(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call_predict(f"run={runs / 'auto_encoder'}", "format=jsonl")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    module = AutoEncoder()
    module.load_state_dict(weights_of(runs / "auto_encoder"))
    batches = list(VectorData().test_dataloader())
    with torch.no_grad():
        codes = torch.cat([module.eval().encoder(batch["x"]) for batch in batches])
    assert [row["row"] for row in rows] == list(range(20))
    np.testing.assert_allclose([row["code"] for row in rows], codes.numpy(), rtol=1e-6)


def test_files_are_predicted_by_preprocess_and_decode(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    for name, row in zip("abc", numbers.tolist(), strict=True):
        (tmp_path / f"{name}.txt").write_text(" ".join(map(str, row)))
    (tmp_path / "d.txt").write_text("no numbers")
    files = ",".join(str(tmp_path / f"{name}.txt") for name in "abcd")
    words = (f"run={runs / 'file_reader'}", f"input={files}", "batch_size=2", "accelerator=cpu")
    call_predict(*words, f"output={tmp_path / 'out.csv'}")
    module = FileReader()
    module.load_state_dict(weights_of(runs / "file_reader"))
    with torch.no_grad():
        expected = module.eval()(numbers)
    with (tmp_path / "out.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [Path(row["file"]).name for row in rows] == ["a.txt", "b.txt", "c.txt"]
    assert [int(row["largest"]) for row in rows] == expected.argmax(1).tolist()
    np.testing.assert_allclose([json.loads(row["outputs"]) for row in rows], expected.numpy(), rtol=1e-5)
    errors = capsys.readouterr().err
    assert "d.txt: could not convert string to float" in errors
    assert "3 rows predicted, 1 skipped" in errors


@pytest.mark.parametrize(
    ("run", "words", "message"),
    [
        ("auto_encoder", ("input=pyproject.toml",), "AutoEncoder has no preprocess and decode; add them to"),
        ("gan", (), "GAN has no predict_step .and no preprocess and decode.; give input=FILE, or add"),
        ("auto_encoder", ("sheet=x.png",), "sheet=x.png: available for image classifiers only"),
    ],
)
def test_predict_says_what_a_task_lacks(runs: Path, run: str, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call_predict(f"run={runs / run}", *words)


@pytest.mark.parametrize("format", ["torch_export", "onnx"])
def test_an_exported_file_computes_the_outputs_of_forward(runs: Path, format: str, tmp_path: Path) -> None:
    call_export(f"run={runs / 'auto_encoder'}", f"format={format}", f"output={tmp_path}")
    module = AutoEncoder()
    module.load_state_dict(weights_of(runs / "auto_encoder"))
    inputs = torch.randn(5, 8)
    with torch.no_grad():
        expected = module.eval()(inputs).numpy()
    if format == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(str(tmp_path / "model.onnx"))
        (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    else:
        found = torch.export.load(tmp_path / "model.pt2").module()(inputs).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    listing = json.loads((tmp_path / f"{format}.json").read_text())
    assert [variant["name"] for variant in listing["variants"]] == ["float32"]


@pytest.mark.parametrize(
    ("run", "words", "message"),
    [
        ("gan", (), "run: GAN has no forward and no attribute network; add one to export the run"),
        ("auto_encoder", ("variants=pruned",), "variants=pruned: available for image classifiers only"),
    ],
)
def test_export_says_what_a_task_lacks(runs: Path, run: str, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call_export(f"run={runs / run}", *words)


def test_reports_and_comparisons_of_foreign_modules_show_their_metrics(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from project.reporting import compare
    from project.reporting.html import command as report

    call_evaluate(f"run={runs / 'auto_encoder'}")
    for name, (*_, monitor) in PARTS.items():
        report.main(read_options(report.Options, [f"run={runs / name}"]))
        text = (runs / name / "report.html").read_text()
        Page(text)  # all tags are closed
        assert monitor in text
    capsys.readouterr()
    compare.main(read_options(compare.Options, [str(runs), "by=val_loss"]))
    shown = capsys.readouterr().out
    assert "AutoEncoder" in shown
    assert "GAN" in shown
