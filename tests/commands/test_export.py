"""Tests of export: equality with the run's network, metadata, variants and refused files."""

import json
import shutil
from pathlib import Path
from typing import Any

import forked_command
import pytest
import torch
from torch import Tensor, nn
from written_runs import write_run

from project.config.command_options import read_options
from project.errors import InputError
from project.inference.export import command, torch_program
from project.inference.export import options as export_options
from project.inference.export.channel_pruning import find_chains, prune
from project.inference.export.command import export
from project.inference.export.options import Options, check_options, choose_variants
from project.inference.export.wrapper import ExportError, ExportWrapper
from project.inference.load_run import load_run
from project.modules.networks.cnn import CNN3x3, CNNBatchNorm
from project.modules.networks.resnet import ResNet
from project.modules.networks.rnn import RowLSTM
from project.modules.networks.vit import ViT
from project.modules.tta import tta_logits
from project.runs.run_folder import RunFolder

SHAPE = (1, 8, 8)
INT8 = ("variants=static_int8,dynamic_int8",)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a network on the digits for a few epochs, with test-time augmentation by flips."""
    folder = tmp_path_factory.mktemp("export")
    forked_command.run(
        *(
            "model=cnn",
            "model.channels=[8,16]",
            "model.hidden_dim=128",
            "trainer.max_epochs=2",
            "tta=flip",
        ),
        *(
            "trainer.accelerator=cpu",
            "channels_last=true",
            "tta=flip",
            f"hydra.run.dir={folder / 'run'}",
        ),
        cwd=folder,
    )
    return folder / "run"


def exported(run: Path, folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Export without a benchmark; return the exit code and the recorded facts."""
    options = read_options(
        Options, [f"run={run}", f"output={folder}", "benchmark_s=0", "batch_size=4", *words]
    )
    code = export(options)
    record = json.loads((folder / f"{options.format}.json").read_text())
    return code, record | {entry["name"]: entry for entry in record["variants"]}


def expected(run: Path) -> tuple[Tensor, Tensor]:
    """Return five digits as uint8 and their probabilities, computed with the run's own parts."""
    trained = load_run(RunFolder(run))
    trained.datamodule.setup("test")
    loader = trained.datamodule.test_dataloader()
    images, _ = next(iter(loader))
    with torch.no_grad():
        logits = tta_logits(trained.module, images[:5], "flip")
    return loader.images.sample(loader.rows[:5]), logits.softmax(1)


def test_onnx_files_run_without_the_package(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("format=onnx", "output_type=probabilities", "variants=static_int8,pruned,dynamic_int8")
    code, record = exported(run, tmp_path, *words)
    assert code == 0
    import onnx
    import onnxruntime

    pixels, probabilities = expected(run)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for count in (1, 5):
        (found,) = session.run(["probabilities"], {"images": pixels[:count].numpy()})
        torch.testing.assert_close(torch.from_numpy(found), probabilities[:count], rtol=0, atol=1e-5)
    facts = {
        entry.key: entry.value for entry in onnx.load(tmp_path / "model_static_int8.onnx").metadata_props
    }
    assert json.loads(facts["class_names"]) == [str(digit) for digit in range(10)]
    assert (json.loads(facts["input_shape"]), facts["variant"]) == ([1, 28, 28], "static_int8")
    assert record["float32"]["largest_difference"] < 1e-5
    assert record["float32"]["accuracy"] == record["original"]["accuracy"]
    for variant, most_lost in (("dynamic_int8", 0.02), ("static_int8", 0.02), ("pruned", 0.3)):
        assert record[variant]["bytes"] < 0.6 * record["float32"]["bytes"]
        assert record[variant]["accuracy"] > record["original"]["accuracy"] - most_lost
        assert record[variant]["largest_difference"] > 0
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        ["model.onnx", "onnx.json", *(f"model_{name}.onnx" for name in export_options.VARIANTS)]
    )
    shown = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in shown if not line.startswith("wrote")) <= 80


def test_torch_export_files_run_without_the_package(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, record = exported(run, tmp_path / "int8", *INT8, "check=100", "tta=none")
    assert code == 0
    for variant in ("static_int8", "dynamic_int8"):
        assert record[variant]["bytes"] < 0.7 * record["float32"]["bytes"]
        assert record[variant]["accuracy"] > record["original"]["accuracy"] - 0.02
    code, record = exported(run, tmp_path, "variants=static_int8", "output_type=probabilities", "check=100")
    assert code == 1
    assert (
        "static_int8: torchao cannot quantize a network with test-time augmentation"
        in capsys.readouterr().err
    )
    facts: dict[str, Any] = {"class_names": "", "tta": ""}
    module = torch.export.load(tmp_path / "model.pt2", extra_files=facts).module()
    assert len(json.loads(facts["class_names"])) == 10
    assert facts["tta"] in ("flip", b"flip")
    pixels, probabilities = expected(run)
    for count in (1, 5):
        found = module(pixels[:count])
        torch.testing.assert_close(found, probabilities[:count], rtol=0, atol=1e-6)
    assert record["float32"]["largest_difference"] == 0


def test_different_outputs_are_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = torch_program.read
    monkeypatch.setattr(torch_program, "read", lambda file, _: lambda images: read(file)(images) + 0.01)
    with pytest.raises(ExportError, match=r"differs from the original by 0\.01 .*tolerance=1e-05"):
        exported(run, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_failed_variants_are_reported_and_the_others_kept(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def quantize(model: nn.Module, source: Path, file: Path, *arguments: object) -> None:
        shutil.copy(source, file)

    def fails(*arguments: object) -> Tensor:
        raise RuntimeError(f"no kernel for\n{len(arguments)}")

    earlier = {"variants": [{"file": name} for name in ("model_pruned.pt2", "../kept", "model.pt2", None)]}
    for name in ("model_pruned.pt2", "model_static_int8.pt2", "model.onnx", "../kept"):
        (tmp_path / "to" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "to" / name).write_text("earlier")
    (tmp_path / "to" / "torch_export.json").write_text(json.dumps(earlier))
    monkeypatch.setattr(command, "prune", fails)
    monkeypatch.setattr(torch_program, "quantize", quantize)
    code, record = exported(run, tmp_path / "to", "variants=pruned,dynamic_int8", "check=20")
    assert code == 1
    assert [row["name"] for row in record["variants"]] == ["original", "float32", "dynamic_int8"]
    assert all(row["ms"] for row in record["variants"])
    names = {file.name for file in (tmp_path / "to").iterdir() if file.name != "torch_export.json"}
    assert names == {"model.pt2", "model_dynamic_int8.pt2", "model_static_int8.pt2", "model.onnx"}
    assert (tmp_path / "kept").exists()
    shown = capsys.readouterr()
    assert "removed" in shown.out
    assert shown.err.splitlines()[-1] == "error: pruned: RuntimeError: no kernel for 3"

    monkeypatch.setattr(command, "time_calls", fails)
    with pytest.raises(RuntimeError, match="no kernel"):
        exported(run, tmp_path / "interrupted", "check=20")
    assert {file.name for file in (tmp_path / "interrupted").iterdir()} == {"model.pt2", "torch_export.json"}


def test_dead_channels_are_pruned() -> None:
    network = CNN3x3(SHAPE, 3).eval()
    for layer in (network.get_submodule("body.0"), network.get_submodule("body.2")):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    smaller = prune(network, torch.randn(4, *SHAPE), 0.5)
    assert smaller(torch.randn(2, *SHAPE)).isfinite().all()


def test_untraceable_networks_are_reported(tmp_path: Path) -> None:
    class Asking(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1) if images.sum().item() > 0 else -images.flatten(1)

    with pytest.raises(ExportError, match=r"^torch\.export cannot trace this network: \w+: [^\n]+$"):
        torch_program.capture(ExportWrapper(Asking(), [0.5], [0.5]), SHAPE)


@pytest.mark.parametrize(
    ("network", "producers"),
    [
        (CNN3x3(SHAPE, 3), ["body.0", "body.2", "head.0"]),
        (CNNBatchNorm((1, 28, 28), 3), ["body.0", "body.4", "body.8"]),
        (ResNet(SHAPE, 3, depth=8, width=4), ["body.3.conv1", "body.4.conv1", "body.5.conv1"]),
        (ViT(SHAPE, 3, dim=8, heads=2, depth=2), ["blocks.layers.0.linear1", "blocks.layers.1.linear1"]),
        (RowLSTM(SHAPE, 3), []),
    ],
)
def test_channels_used_by_one_layer_are_pruned(network: nn.Module, producers: list[str]) -> None:
    images = torch.randn(6, 1, *((28, 28) if isinstance(network, CNNBatchNorm) else (8, 8)))
    with torch_program.quiet():
        traced = torch.export.export(network.eval(), (images[:2],))
    assert [chain.producer for chain in find_chains(traced, network)] == producers
    if not producers:
        with pytest.raises(ExportError, match="no channel can be removed"):
            prune(network, images, 0.5)
        return
    smaller = prune(network, images, 0.5)
    assert smaller(images).shape == (6, 3)
    for name in producers:
        halved = smaller.get_submodule(name).weight.shape[0]
        assert 2 * halved == network.get_submodule(name).weight.shape[0]


def test_redundant_channels_are_pruned_without_loss() -> None:
    torch.manual_seed(0)
    network = CNNBatchNorm((1, 28, 28), 3, channels=[8, 8, 8]).eval()
    for position in (0, 4, 8):
        weight = network.get_submodule(f"body.{position}").weight.data
        weight[4:] = 2 * weight[:4]
    images = torch.randn(32, 1, 28, 28)
    smaller = prune(network, images, 0.5)
    with torch.no_grad():
        torch.testing.assert_close(smaller(images), network(images), rtol=0.01, atol=0.01)


def test_wrong_options_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"variants=static_int9: did you mean static_int8"):
        choose_variants(["static_int9"])
    with pytest.raises(InputError, match=r"format=onx: did you mean onnx\?"):
        read_options(Options, ["run=last", "format=onx"])
    with pytest.raises(InputError, match=r"gives=logits: `gives` is now `output_type`$"):
        read_options(Options, ["run=last", "gives=logits"])
    monkeypatch.setattr(export_options, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs onnx, onnxscript, onnxruntime; .*uv sync --extra export"):
        check_options(Options(run="last", format="onnx"))
    with pytest.raises(InputError, match="in int8: needs torchao"):
        check_options(Options(run="last", variants=["all"]))


def test_unwritable_output_is_reported_before_loading_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run")
    (tmp_path / "file").touch()
    monkeypatch.setattr(command, "load_run", lambda *_: pytest.fail("the network was loaded"))
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/x")):
        with pytest.raises(InputError, match=r"output=.*: cannot be written \("):
            export(Options(run=str(run), output=place))


def test_unrelated_files_are_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run")
    monkeypatch.setattr(command, "load_run", lambda *_: pytest.fail("the network was loaded"))
    for name in ("model.pt2", "model_pruned.pt2", "torch_export.json"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(
            InputError, match=rf"output=.*: contains a {name} that was not written by an export; give another"
        ):
            export(Options(run=str(run), output=tmp_path, variants=["pruned"]))
        (tmp_path / name).unlink()
