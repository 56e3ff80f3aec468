"""What is told of constructors, models and devices without importing them is what importing them tells."""

import inspect
from importlib import import_module
from pathlib import Path

import pytest
import torch
from conftest import CONF
from omegaconf import OmegaConf

from project.config.signatures import Signature, signature_of
from project.config.source_index import Missing
from project.config.validation import trainer

OTHERS = [
    *(f"torch.optim.{name}" for name in ("Adam", "AdamW", "SGD", "RMSprop", "NAdam", "LBFGS", "Adagrad")),
    *("lightning.Trainer", "lightning.pytorch.Trainer", "lightning.pytorch.callbacks.EarlyStopping"),
    *("lightning.pytorch.callbacks.ModelCheckpoint", "lightning.pytorch.callbacks.LearningRateMonitor"),
]


def targets() -> list[str]:
    """All that the YAML files build, Hydra's own plugins aside."""

    def walk(node: object) -> list[str]:
        if not isinstance(node, dict):
            return []
        own = [node["_target_"]] if isinstance(node.get("_target_"), str) else []
        return own + [name for child in node.values() for name in walk(child)]

    files = [file for file in CONF.glob("*/*.yaml") if file.parent.name != "hydra"]
    found = {name for file in files for name in walk(OmegaConf.to_container(OmegaConf.load(file)))}
    return sorted(found - {"???"})


def true_parameters(target: str) -> dict[str, inspect.Parameter]:
    """Parameters as Python has them, those of the bases for `**options` included."""
    module, _, name = target.rpartition(".")
    made = getattr(import_module(module), name)
    if not inspect.isclass(made):
        return dict(inspect.signature(made).parameters)
    if "__new__" in vars(made) and "__init__" not in vars(made):
        return dict(list(inspect.signature(made.__new__).parameters.items())[1:])
    found: dict[str, inspect.Parameter] = {}
    for cls in made.__mro__:
        if "__init__" not in vars(cls) or cls is object:
            continue
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        found = {parameter.name: parameter for parameter in parameters} | found
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


GIVEN_TO_BASE = {
    "project.datamodules.diabetes.Diabetes": ("table", "label_columns", "target_type"),
    "project.modules.autoencoder.VariationalAutoencoderModule": ("loss",),
    "project.modules.contrastive.ContrastiveModule": ("loss",),
}
"""Arguments that a constructor gives to its base, by class."""


@pytest.mark.parametrize("target", [*targets(), *OTHERS])
def test_signatures_are_read_as_python_has_them(target: str) -> None:
    found = signature_of(target)
    assert isinstance(found, Signature), found
    true = true_parameters(target)
    named = {name for name, one in true.items() if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}
    # What a constructor gives to its base itself is not an option of it.
    assert set(found.arguments) <= named
    assert named - set(found.arguments) <= {"name", *GIVEN_TO_BASE.get(target, ())}
    for name in (*found.required(by_name=False), *found.required(by_name=True)):
        assert true[name].default is inspect.Parameter.empty


@pytest.mark.parametrize(
    "header",
    [
        "(self, size: int = 3, *, rate: float = 0.1): super().__init__()",
        "(self, size: int = int('3'), *, rate: float = (0.1)) -> None: pass",
        "(self, size: int = max(1, 3),\n        *, rate: dict[str, int] = {'a': (1)}):\n        pass",
        "(self, size=3, # (default)\n    *, rate=0.1  # see):\n    ) -> 'dict[str, int]':\n        pass",
    ],
)
def test_signatures_of_any_layout_are_read(
    header: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"layout_{abs(hash(header))}"
    (tmp_path / f"{module}.py").write_text(
        f"class Own:\n    def __init__{header}\n\n    def other(self): return (1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = signature_of(f"{module}.Own")
    assert isinstance(found, Signature), found
    assert list(found.arguments) == ["size", "rate"]
    assert found.arguments["rate"].by_name


@pytest.mark.parametrize("name", ["ThroughputMonitor", "ModelSummary", "WeightAveraging"])
def test_options_that_go_to_others_than_the_base_may_be_anything(name: str) -> None:
    found = signature_of(f"lightning.pytorch.callbacks.{name}")
    assert isinstance(found, Signature)
    assert found.anything


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("project.modules.networks.cnn.CNNN", "CNNN"),
        ("project.modules.cn.CNN", "cn"),
        ("torch.optim.Adamm", "Adamm"),
    ],
)
def test_what_does_not_exist_is_told(target: str, what: str) -> None:
    found = signature_of(target)
    assert isinstance(found, Missing)
    assert found.name == what
    assert found.known


@pytest.mark.parametrize(
    "target", ["sweep_objectives.Own", "no.such.package", "torch.nn.CrossEntropyLoss", "Class"]
)
def test_nothing_is_said_of_what_is_not_known(target: str) -> None:
    assert not isinstance(signature_of(target), Missing)


def test_there_are_never_more_gpus_than_are_said_to_be_possible() -> None:
    most = trainer.max_gpus()
    assert most is None or torch.cuda.device_count() <= most


@pytest.mark.parametrize(
    ("visible", "most"),
    [("", 0), ("-1", 0), ("0", 1), ("0,3", 2), ("0,-1,2", 1), ("MIG-1,GPU-2", 2), (None, None)],
)
def test_gpus_that_the_environment_hides(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, most: int | None
) -> None:
    for name in trainer.VISIBLE:
        monkeypatch.delenv(name, raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert trainer._by_environment() == most


def test_gpus_of_the_driver(tmp_path: Path) -> None:
    assert trainer._by_devices(tmp_path) == 0
    (tmp_path / "nvme0").touch()  # a disk
    assert trainer._by_devices(tmp_path) == 0
    (tmp_path / "nvidia0").touch()
    assert trainer._by_devices(tmp_path) is None
    assert trainer._by_nvidia(tmp_path) is None
    for number in range(2):
        (tmp_path / "gpus" / f"0000:0{number}:00.0").mkdir(parents=True)
    assert trainer._by_nvidia(tmp_path) in (2, None)  # None where there is AMD's driver too
    (tmp_path / "capabilities" / "gpu0" / "mig" / "gi1").mkdir(parents=True)
    assert trainer._by_nvidia(tmp_path) is None
